"""How near does the denoiser's forward come to the machine's own matrix-product rate?

    python benchmarks/forward.py

The paper's size, 24 × 512 × 8 on 256 + 1 tokens.  In each round our denoiser, its plain blocks that are trained, the
public code's network and the machine's best large matrix product are called in turn.  All operations of matrix
products are counted, those of attention included.  Also: how far bfloat16 is from float64, packed and plain.
"""

from __future__ import annotations

import torch
from measuring import DEVICE, PRECISIONS, best_product, in_turn, options, precise, share_of_rate, spread, table, write
from public import PublicDenoiser

from bld.planning.cost import flops
from bld.priors import Denoiser, DenoiserConfig


def plain(model: Denoiser, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As it is trained: gradients could be wanted."""
    with torch.enable_grad():
        return model(z, t).detach()


def codes(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randint(0, 2, (batch, 256, 32), dtype=torch.uint8, device=DEVICE)
    return z, torch.full((batch,), 32, device=DEVICE)


def operations(batch: int) -> int:
    with torch.device("meta"):
        model = Denoiser(DenoiserConfig())
        return flops(lambda: model(torch.empty(batch, 256, 32), torch.ones(batch, dtype=torch.long)))


def error(model: Denoiser) -> dict[str, float]:
    """Relative error of bfloat16 logits, of weights that do not vanish."""
    small = Denoiser(DenoiserConfig(depth=8)).eval()
    for parameter in small.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.04)
    z, t = (x.cpu() for x in codes(1))
    exact = small.double()(z, t).detach()
    small.float()
    found = {}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for name, logits in (("packed", small.for_inference()(z, t)), ("plain", plain(small, z, t))):
            found[name] = float((logits.double() - exact).norm() / exact.norm())
    return found


@torch.no_grad()
def main() -> None:
    args = options(__doc__, batches=[1, 8, 32] if DEVICE.type == "cpu" else [1, 8, 64, 256], rounds=7)
    torch.manual_seed(0)
    ours, public = Denoiser(DenoiserConfig()).to(DEVICE).eval(), PublicDenoiser().to(DEVICE).eval()
    rows = []
    for precision, dtype in PRECISIONS.items():
        product, its_flops = best_product(dtype)
        for batch in args.batches:
            z, t = codes(batch)
            with precise(precision):
                called = ours.for_inference().for_sampling()
                calls = {
                    "product": product,
                    "ours": lambda z=z, t=t, called=called: called(z, t),
                    "plain": lambda z=z, t=t: plain(ours, z, t),
                    "public": lambda z=z, t=t: public(z, t),
                }
                times = in_turn(calls, args.rounds if batch * (1 + 2 * (precision == "float32")) < 20 else 2)
            count = operations(batch)
            shares = {f"{n} of rate": share_of_rate(times, n, count, "product", its_flops) for n in list(calls)[1:]}
            row = {"precision": precision, "batch": batch, "GFLOP": count / 1e9}
            row["matrix GFLOP/s"] = its_flops / spread(times["product"]).median / 1e9
            rows.append({**row, "ours ms": 1e3 * spread(times["ours"]).median, **shares})
            table(rows[-1:])
    table(rows)
    errors = error(ours)
    print(f"relative error of bfloat16: {errors}")
    write(__file__, args.out, {"rows": rows, "bfloat16 error": errors})


if __name__ == "__main__":
    main()
