"""What does sampling cost beside the forwards that it needs?

    python benchmarks/sampling.py

The paper's size.  In each round n steps of `sample_codes`, draws and all, are set against n bare forwards of the same
network on the same batch, and n guided steps against n bare forwards of twice the batch.
"""

from __future__ import annotations

import torch
from measuring import DEVICE, PRECISIONS, in_turn, options, precise, ratios, spread, table, write

from bld.diffusion import BernoulliDiffusion, NoiseSchedule, sample_codes, with_guidance
from bld.priors import Denoiser, DenoiserConfig
from bld.seeding import keyed_draws


def forwards(network, batch: int, steps: int, labels: torch.Tensor | None) -> None:
    z = torch.zeros(batch, 256, 32, dtype=torch.uint8, device=DEVICE)
    for step in range(steps, 0, -1):
        network(z, torch.full((batch,), step, device=DEVICE), labels)


@torch.no_grad()
def main() -> None:
    gpu = DEVICE.type == "cuda"
    args = options(__doc__, batches=[1, 64], steps=[4, 16, 64] if gpu else [4, 16], rounds=5)
    torch.manual_seed(0)
    network = Denoiser(DenoiserConfig(num_classes=10)).to(DEVICE).eval()
    diffusion = BernoulliDiffusion(NoiseSchedule("linear", 64))
    rows = []
    for precision in PRECISIONS:
        with precise(precision):
            called = network.for_inference().for_sampling()
        for batch in args.batches:
            for steps in args.steps if batch == 1 or gpu else args.steps[:1]:
                labels = torch.zeros(batch, dtype=torch.long, device=DEVICE)
                null = torch.full_like(labels, network.null_label)

                def sample(scale: float, batch=batch, steps=steps, labels=labels, null=null, called=called) -> None:
                    sample_codes(
                        with_guidance(called, labels, null, scale),
                        (batch, 256, 32),
                        diffusion,
                        steps=steps,
                        generators=keyed_draws(0, "sample", range(batch)),
                        device=DEVICE,
                    )

                calls = {
                    "forwards": lambda f=called, b=batch, n=steps, y=labels: forwards(f, b, n, y),
                    "sample": lambda s=sample: s(1.0),
                }
                if batch == 1 or gpu:
                    both = torch.cat([labels, null])
                    calls["doubled"] = lambda f=called, b=batch, n=steps, y=both: forwards(f, 2 * b, n, y)
                    calls["guided"] = lambda s=sample: s(2.5)
                with precise(precision):
                    times = in_turn(calls, args.rounds if batch == 1 or gpu else 2, warm_ups=int(batch == 1 or gpu))
                row = {"precision": precision, "batch": batch, "steps": steps}
                row |= {"ms per step": 1e3 * spread(times["sample"]).median / steps}
                row["sampling / forwards"] = ratios(times, "sample", "forwards")
                row["guided / doubled forwards"] = ratios(times, "guided", "doubled") if "guided" in times else "–"
                rows.append(row)
                table(rows[-1:])
    table(rows)
    write(__file__, args.out, {"rows": rows})


if __name__ == "__main__":
    main()
