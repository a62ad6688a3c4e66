"""What does a training step of the prior reach, and what do data, weight average and log take of it?

    python benchmarks/prior_step.py

The paper's size (`churches256`), batch 8, the real loop on a cache of random codes.  Forward, backward and update are
counted as three forwards, and set against the machine's best matrix product in turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measuring import DEVICE, best_product, in_turn, options, seconds, share_of_rate, spread, table, write
from steps import prior_run, stepping

from bld.planning.cost import flops
from bld.priors import Denoiser
from bld.training.config import load_settings
from bld.training.metrics_log import MetricsLog


def forward_operations(settings, batch: int) -> int:
    config = settings.denoiser(settings.tokenizer.code_shape, 0)
    with torch.device("meta"):
        model, shape = Denoiser(config), settings.tokenizer.code_shape
        z, t = torch.empty(batch, shape.positions, shape.c), torch.ones(batch, dtype=torch.long)
    return flops(lambda: model(z, t))


def measure(precision: str, batch: int, rounds: int) -> dict[str, object]:
    overrides = [f"mixed_precision={precision}", f"prior_training.batch_size={batch}"]
    settings = load_settings("churches256", overrides=overrides)
    product, its_flops = best_product(torch.bfloat16 if precision == "bf16" else torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        going = prior_run(settings, Path(folder))
        times = in_turn({"product": product, "step": stepping(going)}, rounds)
        count = 3 * forward_operations(settings, batch)
        whole = spread(times["step"]).median
        batches = going.stage.batches(going.step)
        data = spread([seconds(lambda: next(batches)) for _ in range(20)]).median
        average = spread([seconds(lambda: going.average.update(going.step)) for _ in range(5)]).median
        log = MetricsLog(going.run, "prior", settings, lambda _: None, going.step)
        values = dict.fromkeys(("loss", "residual", "vlb", "gradient_norm", "learning_rate"), 1.0)
        line = spread([seconds(lambda: log.write(going.step, 1.0, values)) for _ in range(20)]).median
        log.close()
    return {
        "precision": precision,
        "batch": batch,
        "s per step": whole,
        "of rate": share_of_rate(times, "step", count, "product", its_flops),
        "data %": 100 * data / whole,
        "average %": 100 * average / whole,
        "log %": 100 * line / settings.prior_training.log_every_steps / whole,
    }


def main() -> None:
    args = options(__doc__, batches=[8] if DEVICE.type == "cpu" else [8, 32, 128], rounds=4)
    rows = []
    for precision in ("bf16", "float32"):
        for batch in args.batches:
            rows.append(measure(precision, batch, args.rounds))
            table(rows[-1:])
    table(rows)
    write(__file__, args.out, {"rows": rows})


if __name__ == "__main__":
    main()
