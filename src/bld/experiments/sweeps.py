"""The experiments that vary one thing: Figures 4, 7, A and M, steps in training, draws of codes, the posterior."""

from __future__ import annotations

from typing import Any

from bld.experiments.comparison import Comparison
from bld.experiments.plots import chart, sample_rows, schedule_curves
from bld.experiments.prior_rows import Item, Picture, Row, Values, all_below, below
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.experiments.scales import Scale
from bld.experiments.tables import CONFIDENT, EQUAL, GUIDED_TWICE, TWICE, grids, guided_steps, second_tries

# -- figures ----------------------------------------------------------------------------------------------


def _figure4(scale: Scale) -> list[Row]:
    return [Row(f"τ = {t:g}", "bernoulli", Sampling(16, t)) for t in (0.2, 0.5, 0.7, 0.9, 1.0, 1.2)]


_figure4_claims = all_below(
    ("diversity", "τ = 0.2", "τ = 0.9", "τ = 0.9 is more diverse than τ = 0.2"),
    ("recall", "τ = 0.2", "τ = 0.9", "and covers more of the data"),
    ("fd", "τ = 0.9", "τ = 0.2", "a very low temperature is farther from the data"),
)


def _steps(scale: Scale) -> tuple[int, ...]:
    return (4, 8, 16, 64) if scale.brief else (1, 2, 4, 8, 16, 32, 64)


OURS, SKIPPED = "trained for so many", "trained for 64, steps skipped"
ABSORBING, BY_CONFIDENCE, ABSORBING_TWICE = "absorbing", "absorbing by confidence", "absorbing at guidance 2"
GAUSSIAN_STEPS, ONE_BY_ONE = "Gaussian, trained for 1,000, DDIM", "autoregressive"


def _figure7(scale: Scale) -> list[Row]:
    """All at τ = 1: as trained, so that a number of steps and a temperature are not confused."""
    steps = _steps(scale)
    return [
        *(Row(f"{OURS}, {n}", f"steps-{n}", Sampling(n, 1.0)) for n in (4, 8, 16)),
        *(Row(f"{SKIPPED}, {n}", "bernoulli", Sampling(n, 1.0)) for n in steps),
        *(Row(f"{ABSORBING}, {n}", "absorbing", Sampling(n, 1.0)) for n in steps if n <= scale.positions),
        *(
            Row(f"{BY_CONFIDENCE}, {n}", "absorbing", Sampling(n, 1.0, reveal="confidence"))
            for n in steps
            if n <= scale.positions
        ),
        *(
            Row(f"{ABSORBING_TWICE}, {n}", "absorbing", Sampling(n, 1.0).guided(2.0))
            for n in steps
            if n <= scale.positions and scale.guidance  # as `second_tries`, the steps last in the label
        ),
        *(Row(f"{GAUSSIAN_STEPS}, {n}", "gaussian", Sampling(n, 1.0)) for n in steps if n >= 4),
        Row(f"{ONE_BY_ONE}, {scale.positions}", "autoregressive", Sampling(None, 1.0)),
    ]


def _figure7_claims(values: Values) -> list[Comparison]:
    """At equal numbers of forward passes; a ratio to a saturated row would say nothing."""
    return [
        below(values, "fd", f"{OURS}, {n}", f"{kind}, {n}", f"nearer than {kind} with {n} steps")
        for n in (4, 8, 16)
        for kind in (ABSORBING, ABSORBING_TWICE)
        if f"{kind}, {n}" in values
    ]


def _by_steps(rows: list[Row], values: Values, kinds: tuple[str, ...]) -> dict[str, tuple[list[Any], list[Any]]]:
    """(steps, distances) of the rows of each kind, which is what their labels say before the number of steps."""
    chosen = {kind: [row for row in rows if row.label.startswith(f"{kind}, ")] for kind in kinds}
    return {
        kind: ([r.sampling.steps for r in theirs], [values[r.label]["fd"] for r in theirs])
        for kind, theirs in chosen.items()
    }


def _figure7_pictures(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
    kinds = (OURS, SKIPPED, ABSORBING, BY_CONFIDENCE, GAUSSIAN_STEPS, ONE_BY_ONE, ABSORBING_TWICE)
    curves = {kind: curve for kind, curve in _by_steps(rows, values, kinds).items() if curve[0]}
    passes = [int(row.label.rpartition(" ")[2]) for row in rows]
    curves[ONE_BY_ONE] = ([min(passes), max(passes)], 2 * curves[ONE_BY_ONE][1])  # a line: it cannot skip any
    image = chart(curves, "denoising steps", runner.extractor.distance_name(), log="xy")
    caption = (
        "Distance against steps, τ = 1; the bands are the spread, the autoregressive prior a line at all its steps"
    )
    return [(f"figure7-{runner.scale.label}.png", caption, image)]


def _figure_a(scale: Scale) -> list[Row]:
    return [
        Row("linear", "bernoulli", Sampling(64)),
        Row("cosine", "schedule-cosine", Sampling(64)),
        Row("sigmoid", "schedule-sigmoid", Sampling(64)),
    ]


_figure_a_claims = all_below(
    ("fd", "linear", "cosine", "linear below cosine"), ("fd", "linear", "sigmoid", "linear below sigmoid")
)


def _figure_m(scale: Scale) -> list[Row]:
    return [
        Row(f"ω = {w:g}", scale.conditional, Sampling(guided_steps(scale), guidance_scale=1 + w, labelled=True))
        for w in (0.0, 1.0, 2.0, 4.0)
    ]


def _figure_m_claims(values: Values) -> list[Comparison]:
    judged = "accuracy" if values["ω = 0"].get("accuracy") else "cas_top1"
    words = {"accuracy": "more samples recognised as their class", "cas_top1": "samples that teach a classifier more"}
    return [
        below(values, judged, "ω = 0", "ω = 4", f"larger ω: {words[judged]}"),
        below(values, "precision", "ω = 0", "ω = 4", "larger ω: more samples that lie among the data"),
        below(values, "recall", "ω = 4", "ω = 0", "larger ω: less of the data is covered"),
    ]


def _posterior(scale: Scale) -> list[Row]:
    steps = tuple(n for n in _steps(scale) if n >= 4)
    rows = [Row(f"exact, {n} steps", "bernoulli", Sampling(n, 1.0)) for n in steps]
    return rows + [Row(f"plugin, {n} steps", "bernoulli", Sampling(n, 1.0, posterior="plugin")) for n in steps]


_posterior_claims = all_below(
    ("fd", "exact, 64 steps", "plugin, 64 steps", "at 64 steps eq. (8) is nearer to the data than eq. (10)"),
    ("diversity", "plugin, 64 steps", "exact, 64 steps", "eq. (10) counts evidence twice and is less diverse"),
)


def _posterior_pictures(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
    curves = _by_steps(rows, values, ("exact", "plugin"))
    image = chart(curves, "denoising steps", runner.extractor.distance_name(), log="xy")
    grid = sample_rows(runner, [row for row in rows if row.sampling.steps == 64])
    name = runner.scale.label
    return [
        (f"posterior-{name}.png", "Distance against steps, τ = 1; the bands are the spread", image),
        (f"posterior-samples-{name}.png", "64 steps: upper row exact, lower row plugin, the same seeds", grid),
    ]


# -- steps that a network is trained for, and those that it takes -----------------------------------------


def _training_steps(scale: Scale) -> list[Row]:
    rows = [Row(f"trained for {T}, {T} steps", f"steps-{T}", Sampling(T)) for T in (4, 8, 16)]
    return rows + [
        Row(f"trained for 64, {n} steps", "bernoulli", Sampling(n), has_bits=n == 64) for n in (4, 8, 16, 64)
    ]


_training_steps_claims = all_below(
    *(("fd", f"trained for {T}, {T} steps", f"trained for 64, {T} steps", f"nearer with {T} steps") for T in (4, 8, 16))
)


def _guided_steps_rows(scale: Scale) -> list[Row]:
    return [
        Row("64 steps, without guidance: 64 passes", scale.conditional, Sampling(64, labelled=True)),
        Row("64 steps, ω = 1: 128 passes", scale.conditional, Sampling(64, guidance_scale=2.0, labelled=True)),
        Row("16 steps, ω = 1: 32 passes", scale.conditional, Sampling(16, guidance_scale=2.0, labelled=True)),
        Row("16 steps, without guidance: 16 passes", scale.conditional, Sampling(16, labelled=True)),
    ]


def _guided_steps_claims(values: Values) -> list[Comparison]:
    quarter, words = values["16 steps, ω = 1: 32 passes"]["fd"], "16 guided steps are at most 1.1 times as far as {}"
    return [
        Comparison.at_most(words.format(f"64 {kind}"), 1.1, quarter, values[label]["fd"])
        for kind, label in (
            ("without guidance", "64 steps, without guidance: 64 passes"),
            ("guided ones", "64 steps, ω = 1: 128 passes"),
        )
    ]


def _gaussian_steps(scale: Scale) -> list[Row]:
    few = Row("Gaussian trained for 16, 16 steps", "gaussian-16", Sampling(16, 1.0))
    return [
        Row("Gaussian trained for 1,000, 100 steps", "gaussian", Sampling(100, 1.0)),
        Row("Gaussian trained for 100, 100 steps", "gaussian-100", Sampling(100, 1.0)),
        few,
        *second_tries(scale, few),
        Row("Gaussian trained for 16, 16 steps, predicting the noise", "gaussian-16-noise", Sampling(16, 1.0)),
        Row("binary diffusion trained for 16, 16 steps", "steps-16", Sampling(16)),
        Row("binary diffusion trained for 64, 64 steps", "bernoulli", Sampling(64)),
    ]


def _gaussian_steps_claims(values: Values) -> list[Comparison]:
    few, ours = "Gaussian trained for 16, 16 steps", "binary diffusion trained for 16, 16 steps"
    many = "Gaussian trained for 100, 100 steps"
    return [
        below(values, "fd", many, few, "a Gaussian prior trained for 16 steps is farther off than one for 100"),
        *(
            below(values, "fd", ours, label, f"with 16 steps in training binary diffusion is nearer than {label}")
            for label in (few, f"{few}{TWICE}")
            if label in values
        ),
    ]


def _draws(scale: Scale) -> list[Row]:
    n = guided_steps(scale)
    return [
        Row("drawn anew at each step", "draws-fresh", Sampling(n)),
        Row("four draws of each image, kept", "draws-4", Sampling(n)),
        Row("one draw of each image, kept", "draws-1", Sampling(n)),
    ]


_draws_claims = all_below(
    ("bits_per_code", "drawn anew at each step", "one draw of each image, kept", "a kept draw costs bits"),
    ("fd", "drawn anew at each step", "one draw of each image, kept", "and distance"),
)


SWEEPS = [
    Item(
        "figure4",
        "Figure 4: temperature",
        "temperature decides diversity; too low loses rare patterns, too high breaks samples.",
        _figure4,
        _figure4_claims,
        ("fd", "precision", "recall", "diversity"),
        grids("figure4", "Temperatures as in the table, from top to bottom, the same seeds"),
    ),
    Item(
        "figure7",
        "Figure 7: number of denoising steps",
        "binary diffusion is more robust to few steps than absorbing diffusion.",
        _figure7,
        _figure7_claims,
        ("fd",),
        _figure7_pictures,
        (
            "The claim is of networks trained for so many steps, as in the paper. Below them one network trained for "
            "64 that skips steps. The Gaussian prior models other codes, real numbers half as many as there are bits.",
            CONFIDENT,
            GUIDED_TWICE,
        ),
    ),
    Item(
        "figureA",
        "Figure A: noise schedules",
        "the linear schedule is used throughout, having the smallest FID.",
        _figure_a,
        _figure_a_claims,
        ("fd", "precision", "recall", "bits_per_code"),
        schedule_curves,
    ),
    Item(
        "figureM",
        "Figure M: classifier-free guidance",
        "larger ω improves sample quality at the cost of diversity.",
        _figure_m,
        _figure_m_claims,
        ("fd", "accuracy", "precision", "recall", "diversity"),
        grids("figureM", "ω as in the table, from top to bottom, the same seeds, one sample of each class"),
        (
            "Diversity is the mean distance between samples' features, and unclear samples lie close together whatever "
            "they show: where guidance makes them clear it grows. Recall, the share of real images with a sample "
            "nearby, is what guidance costs.",
        ),
    ),
    Item(
        "training-steps",
        "Section 5.3: a network trained for few steps",
        "(the paper trains one network for each number of steps) few steps are better taken by a network that was "
        "trained for them than by skipping steps of one that was trained for 64.",
        _training_steps,
        _training_steps_claims,
        ("fd", "precision", "recall"),
    ),
    Item(
        "guided-steps",
        "Appendix C: a quarter of the steps, guided",
        "with guidance a quarter of the steps does not noticeably reduce quality, for half the computation.",
        _guided_steps_rows,
        _guided_steps_claims,
        ("fd", "accuracy", "precision", "recall"),
        notes=("A guided step is two forward passes. “Not noticeably” is read as a distance of at most 1.1 times.",),
    ),
    Item(
        "gaussian-steps",
        "Section 5.3: Gaussian diffusion trained for few steps",
        "Gaussian diffusion hardly performs with fewer than 100 steps in training; binary diffusion does with 16.",
        _gaussian_steps,
        _gaussian_steps_claims,
        ("fd", "precision", "recall"),
        notes=(
            EQUAL,
            GUIDED_TWICE,
            "Gaussian rows predict v, which is safe at few steps; the row that predicts the noise is as latent "
            "diffusion has it, and no part of the claim.",
        ),
    ),
    Item(
        "draws",
        "Algorithm 1, line 6: codes drawn anew",
        "(the paper draws the codes of every training step anew) a prior that learns from kept draws knows less.",
        _draws,
        _draws_claims,
        ("fd", "precision", "recall", "bits_per_code"),
        notes=("Images are mirrored or not as the scale says; each draw is of the same probabilities.",),
    ),
    Item(
        "posterior",
        "Exact posterior against the public code's",
        "(ours, not the paper's) eq. (8) as one affine map converges; eq. (10), its indices corrected as in the "
        "public code, counts the evidence of z_t twice.",
        _posterior,
        _posterior_claims,
        ("fd", "precision", "recall", "diversity"),
        _posterior_pictures,
        ("With a perfect predictor the difference is enumerated in tests/diffusion/test_perfect_predictor.py.",),
    ),
]
