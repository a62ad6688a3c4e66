"""Which learning rate each kind of prior learns fastest with: chosen on held-out images before any row is compared."""

from __future__ import annotations

import json

from bld.experiments.kept import NOT_NOTED
from bld.experiments.page import Findings, Table
from bld.experiments.runner import Runner
from bld.training.stages.prior import DRAWN_BOUND, PROBABLE_BOUND

KINDS = ("bernoulli", "absorbing", "autoregressive", "gaussian")
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
TRIAL_SEED = 100  # of no training that is judged


def rates(runner: Runner, seeds: int) -> Findings:
    """A short training of each kind at each rate; half of the best is what the scale's `rates` are set to."""
    values: dict[str, dict[str, list[float]]] = {}
    for kind in KINDS:
        found = {f"{rate:g}": _held_out(runner, f"{kind}@{rate:g}") for rate in RATES}
        values[kind] = {rate: [value] for rate, (_, value) in found.items()}
    rows = [
        [kind, *(f"{by_rate[f'{rate:g}'][0]:.4f}" for rate in RATES), best_rate(by_rate)]
        for kind, by_rate in values.items()
    ]
    return Findings(
        "Learning rates of the priors",
        "(ours, not the paper's) each kind of prior is compared at the learning rate that suits it.",
        [
            (
                f"After {runner.scale.trial_steps:,} steps, one training each, of a seed that is judged nowhere: bits "
                "per bit of held-out codes; for the Gaussian prior, which has none, its loss on them.",
                Table(["prior", *(f"rate {rate:g}" for rate in RATES), "best"], rows),
            )
        ],
        values=values,
        looked_at="Half of the best of a line is the rate of all rows of its kind (`src/bld/experiments/scales.py`).",
        notes=[
            "Half, because longer trainings want smaller rates: in 1,889 steps of another prior 0.001 and 0.004 did "
            "alike, where in 300 steps 0.004 is far ahead.",
            "Rows that change only the target, the evidence or T take the rate of `bernoulli`.",
        ],
    )


def best_rate(by_rate: dict[str, list[float]]) -> str:
    """The rate with the lowest held-out value."""
    return min(by_rate, key=lambda rate: by_rate[rate][0])


def _held_out(runner: Runner, prior: str) -> tuple[str, float]:
    """(what is measured, its value at the end of a training)."""
    run = runner.prior(prior, TRIAL_SEED)
    runner.machines.add(run.progress().get("prior", {}).get("machine", NOT_NOTED))
    found = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    for name in (DRAWN_BOUND, PROBABLE_BOUND, "held_out_loss"):
        values = [line[name] for line in found if name in line]
        if values:
            return name, values[-1]
    raise AssertionError(f"{prior} was trained without held-out images")
