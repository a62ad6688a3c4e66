"""What the host does in a step while a GPU computes: seconds for every preset, networks replaced by nothing.

    python benchmarks/host.py                        # every preset, about two minutes
    python benchmarks/host.py --presets imagenet256

    batch     the next batch of the prior at its real size: order, views, steps, labels, rows of the cache; on a GPU a
              thread does this ahead (`bld.training.ahead`)
    step      draws, noise, loss and backward pass of as many codes, of one bit each, so that what is left is asking for
              operations, to which a GPU's driver adds some microseconds each
    asked     the operations that a step asks for
    sample    a step of the sampler for one code, of one bit, likewise; and with guidance

Networks and optimizers are not counted: their launches are those of torch.  One thread.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import machine, options, table, write
from steps import prior_run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bld.seeding import keyed_draws
from bld.training.config import load_settings, preset_names
from bld.training.settings import Settings

ONE_BIT = (1, 1, 1)
SAMPLED = 16  # steps
SMALL = ["prior.dim=8", "prior.depth=1", "prior.heads=1", "mixed_precision=float32"]


class Nothing(nn.Module):
    """Takes the place of a network: logits at once, with a gradient to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.logit.expand(z.shape)


class Asked(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """The median."""
    taken = []
    for _ in range(rounds + 5):
        begun = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(taken[5:])


def settings_of(preset: str, *more: str) -> Settings:
    return load_settings(preset, overrides=[*SMALL, *more])


def row(preset: str, rounds: int) -> dict[str, Any]:
    settings, classes = settings_of(preset), 1000 if preset.startswith("imagenet") else 10
    with tempfile.TemporaryDirectory() as folder:
        batches = prior_run(settings, Path(folder), classes=classes).stage.batches(0)
        batch = milliseconds(lambda: next(batches), rounds)
    with tempfile.TemporaryDirectory() as folder:
        stage = prior_run(settings_of(preset, "prior.patch_size=1"), Path(folder), classes=classes, shape=ONE_BIT).stage
        stage.prepared = {"prior": Nothing()}
        rows = next(stage.batches(0))

        def step() -> None:
            stage.train_step(rows, 0, 0.5, lambda _, loss: loss.backward())

        with Asked() as asked:
            step()
        took, nothing = milliseconds(step, rounds), Nothing()
        rest = {"known": None, "mask": None, "callback": None}

        def sample(guided: bool = False) -> None:
            def denoise(z: Tensor, t: Tensor) -> Tensor:
                if not guided:
                    return nothing(z, t)
                given, free = nothing(torch.cat([z, z]), torch.cat([t, t])).chunk(2)
                return free + 4.0 * (given - free)

            stage.process.sample(denoise, (1, 1, 1), steps=SAMPLED if stage.process.may_skip else None,
                                 generators=keyed_draws(0, "host", range(1)), **rest)  # fmt: skip

        steps = SAMPLED if stage.process.may_skip else stage.process.steps
        sampled = {
            name: milliseconds(lambda g=g: sample(g), rounds) / steps
            for name, g in (("sample", False), ("guided", True))
        }
    return {
        "preset": preset, "images": settings.prior_training.batch_size, "batch (ms)": batch, "step (ms)": took,
        "asked": asked.count, "sample (ms)": sampled["sample"], "guided (ms)": sampled["guided"],
    }  # fmt: skip


def main() -> None:
    args = options(__doc__, presets=list(preset_names()), rounds=200)
    torch.set_num_threads(1)
    rows = []
    for preset in args.presets:
        rows.append(row(preset, args.rounds))
        table(rows[-1:])
    write(__file__, args.out, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
