"""The experiments whose rows are priors: Tables 1-3, 5 and 7, Figures 4, 7, A and M, `posterior`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from bld.experiments.plots import chart, sample_rows, schedule_curves
from bld.experiments.prior_rows import Item, Picture, Row, Values, all_below, below
from bld.experiments.runner import Runner, Sampling
from bld.experiments.scales import Scale
from bld.experiments.verdict import Comparison

NO_EVIDENCE = "{}, without known evidence"

# -- Table 1, 2, 3 ----------------------------------------------------------------------------------------


PAPER_TABLE_1 = {
    "churches256": ("4.02 0.64 0.52", "4.07 0.71 0.45", "4.96 0.66 0.48", "4.36 0.68 0.50"),
    "bedrooms256": ("2.95 0.66 0.48", "3.64 0.67 0.38", "4.32 0.62 0.44", "3.85 0.65 0.44"),
    "ffhq256": ("4.98 0.73 0.50", "6.11 0.73 0.48", "6.48 0.71 0.45", "5.85 0.73 0.50"),
    "celebahq256": ("5.11 0.72 0.49", "– – –", "7.80 0.67 0.44", "6.24 0.71 0.48"),
}
"""FID, precision and recall of the four rows; of the smaller scales, LSUN Churches' stand beside."""


def _table1(scale: Scale, positions: int) -> list[Row]:
    at_paper = scale.name == "paper"
    rows = (
        ("LDM (Gaussian)", "gaussian", Sampling(200 if at_paper else 100, 1.0), "1,000 (200 DDIM)"),
        ("absorbing", "absorbing", Sampling(positions), "256"),
        ("ours, 16 steps", _trained_for(16, scale), Sampling(16), "16"),
        ("ours, 64 steps", "bernoulli", Sampling(64), "64"),
    )
    printed_rows = PAPER_TABLE_1.get(scale.preset, PAPER_TABLE_1["churches256"])
    return [
        Row(label, prior, sampling, {"steps": steps, **dict(zip(("FID", "P", "R"), printed.split(), strict=True))})
        for (label, prior, sampling, steps), printed in zip(rows, printed_rows, strict=True)
    ]


def _trained_for(steps: int, scale: Scale) -> str:
    """The prior of a row of so many steps: at paper scale one that was trained for them, as in the paper."""
    return f"steps-{steps}" if scale.name == "paper" else "bernoulli"


def _table1_claims(values: Values) -> list[Comparison]:
    best = min(values["absorbing"]["fd"], values["LDM (Gaussian)"]["fd"], key=fmean)
    words = "comparable: our distance at 64 steps is at most 1.25 times the best of the others'"
    return [Comparison.at_most(words, 1.25, values["ours, 64 steps"]["fd"], best)]


def _table2(scale: Scale, positions: int) -> list[Row]:
    paper = {"FID": "8.21", "IS": "162.32", "P": "0.72", "R": "0.64", "Top-1": "65.07%", "Top-5": "85.60%"}
    n = _guided_steps(scale)
    return [
        Row("real training images", "", Sampling(), {"Top-1": "76.6%", "Top-5": "93.1%"}),
        Row("ours, without guidance", "conditional", Sampling(n, guidance_scale=1.0, labelled=True)),
        Row("ours, ω = 1", "conditional", Sampling(n, guidance_scale=2.0, labelled=True)),
        Row("ours, ω = 2", "conditional", Sampling(n, guidance_scale=3.0, labelled=True), paper),
    ]


def _guided_steps(scale: Scale) -> int:
    return 64 if scale.name == "paper" else 16


_table2_claims = all_below(
    ("fd", "ours, ω = 2", "ours, without guidance", "guidance brings samples nearer to the data"),
    ("is_mean", "ours, without guidance", "ours, ω = 2", "guidance raises the inception score"),
    ("cas_top1", "ours, without guidance", "ours, ω = 2", "guided samples teach a classifier more"),
)


def _table3(scale: Scale, positions: int) -> list[Row]:
    if scale.name == "paper":  # ffhq1024 is the small grid itself; the usual one, 64×64, is what nobody can afford
        paper = {64: {"FID FFHQ": "6.75", "FID CelebA-HQ": "6.12"}, 256: {"FID FFHQ": "6.35", "FID CelebA-HQ": "6.03"}}
        priors = {64: _trained_for(64, scale), 256: "bernoulli"}
        return [Row(f"1024×1024, 32×32 latent, {n} steps", priors[n], Sampling(n), paper[n]) for n in sorted(paper)]
    return [
        Row("usual latent side, 16 steps", "bernoulli", Sampling(16)),
        Row("usual latent side, 64 steps", "bernoulli", Sampling(64)),
        Row("half the latent side, 16 steps", "bernoulli-small", Sampling(16)),
        Row("half the latent side, 64 steps", "bernoulli-small", Sampling(64), {"FID at 1024×1024, FFHQ": "6.75"}),
    ]


def _table3_claims(values: Values) -> list[Comparison]:
    if "usual latent side, 64 steps" not in values:
        return []
    half, usual = (values[f"{side} latent side, 64 steps"]["fd"] for side in ("half the", "usual"))
    return [Comparison.at_most("little compromise: the distance grows by no more than a quarter", 1.25, half, usual)]


# -- Table 5 and 7 ----------------------------------------------------------------------------------------


def _table5(scale: Scale, positions: int) -> list[Row]:
    ours = {"steps": "64", "FID Churches": "4.36", "FID FFHQ": "5.85"}
    return [
        Row(
            f"autoregressive, {positions} steps",
            "autoregressive",
            Sampling(),
            {"steps": "256", "FID Churches": "7.25", "FID FFHQ": "8.23"},
        ),
        Row(
            f"absorbing, {positions} steps",
            "absorbing",
            Sampling(positions),
            {"steps": "256", "FID Churches": "5.44", "FID FFHQ": "7.64"},
        ),
        Row(
            f"absorbing, {positions} steps, by confidence",
            "absorbing",
            Sampling(positions, reveal="confidence"),
            has_bits=False,
        ),
        Row("binary diffusion, 16 steps", "bernoulli", Sampling(16), has_bits=False),
        Row("binary diffusion, 64 steps", "bernoulli", Sampling(64), ours),
        Row("binary diffusion, 64 steps, target z_0", "target-z0", Sampling(64)),
        Row(NO_EVIDENCE.format("binary diffusion, 64 steps"), "evidence-off", Sampling(64)),
    ]


def _table5_claims(values: Values) -> list[Comparison]:
    ours = "binary diffusion, 64 steps"
    others = [label for label in values if label.endswith(" steps") and not label.startswith("binary")]
    return [below(values, "fd", ours, label, f"binary diffusion's distance below that of {label}") for label in others]


def _table7(scale: Scale, positions: int) -> list[Row]:
    s = Sampling(16 if scale.name == "cifar10" else 64)  # the more steps, the longer; Figure 7 says what they are worth
    return [
        Row("λ = 0", "lambda-0", s, {"FID / recall": "5.07 / 0.42"}),
        Row("λ = 0.01", "lambda-0.01", s, {"FID / recall": "4.68 / 0.46"}),
        Row("λ = 0.1, target z_t ⊕ z_0", "bernoulli", s, {"FID / recall": "4.36 / 0.50"}),
        Row("λ = 1", "lambda-1", s, {"FID / recall": "5.12 / 0.48"}),
        Row("target z_{t-1}", "target-previous", Sampling(64), {"FID / recall": "5.09 / 0.48"}),
        Row("target z_0", "target-z0", s, {"FID / recall": "4.72 / 0.50"}),
        Row(NO_EVIDENCE.format("λ = 0.1, target z_t ⊕ z_0"), "evidence-off", s),
    ]


def _table7_claims(values: Values) -> list[Comparison]:
    ours = "λ = 0.1, target z_t ⊕ z_0"
    return [
        below(values, "fd", ours, label, f"{ours} below {label}")
        for label in values
        if label != ours and "evidence" not in label
    ]


# -- figures ----------------------------------------------------------------------------------------------


def _figure4(scale: Scale, positions: int) -> list[Row]:
    return [Row(f"τ = {t:g}", "bernoulli", Sampling(16, t)) for t in (0.2, 0.5, 0.7, 0.9, 1.0, 1.2)]


_figure4_claims = all_below(
    ("diversity", "τ = 0.2", "τ = 0.9", "τ = 0.9 is more diverse than τ = 0.2"),
    ("recall", "τ = 0.2", "τ = 0.9", "and covers more of the data"),
    ("fd", "τ = 0.9", "τ = 0.2", "a very low temperature is farther from the data"),
)


def _steps(scale: Scale) -> tuple[int, ...]:
    return (4, 8, 16, 64) if scale.name == "cifar10" else (1, 2, 4, 8, 16, 32, 64)


def _figure7(scale: Scale, positions: int) -> list[Row]:
    trained = {n: "bernoulli" if n in (1, 2, 32, 64) else _trained_for(n, scale) for n in _steps(scale)}
    rows = [Row(f"binary diffusion, {n}", trained[n], Sampling(n, 1.0)) for n in _steps(scale)]
    return rows + [Row(f"absorbing, {n}", "absorbing", Sampling(n, 1.0)) for n in _steps(scale) if n <= positions]


def _figure7_claims(values: Values) -> list[Comparison]:
    """At equal numbers of forward passes, wherever both have one; a ratio to a saturated row would say nothing."""
    kinds = ("binary diffusion", "absorbing")
    ours, theirs = ([label.split(", ")[1] for label in values if label.startswith(kind)] for kind in kinds)
    both = [n for n in ours if n in theirs and int(n) <= 16]
    return [
        below(values, "fd", f"binary diffusion, {n}", f"absorbing, {n}", f"nearer than absorbing with {n} steps")
        for n in both
    ]


def _by_steps(rows: list[Row], values: Values, kinds: tuple[str, ...]) -> dict[str, tuple[list[Any], list[Any]]]:
    """(steps, distances) of the rows whose label begins with each kind."""
    chosen = {kind: [row for row in rows if row.label.startswith(kind)] for kind in kinds}
    return {
        kind: ([r.sampling.steps for r in theirs], [values[r.label]["fd"] for r in theirs])
        for kind, theirs in chosen.items()
    }


def _figure7_pictures(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
    curves = _by_steps(rows, values, ("binary diffusion", "absorbing"))
    image = chart(curves, "denoising steps", runner.extractor.distance_name(), log=True)
    return [(f"figure7-{runner.scale.label}.png", "Distance against steps, τ = 1; the bands are the spread", image)]


def _figure_a(scale: Scale, positions: int) -> list[Row]:
    return [
        Row("linear", "bernoulli", Sampling(64)),
        Row("cosine", "schedule-cosine", Sampling(64)),
        Row("sigmoid", "schedule-sigmoid", Sampling(64)),
    ]


_figure_a_claims = all_below(
    ("fd", "linear", "cosine", "linear below cosine"), ("fd", "linear", "sigmoid", "linear below sigmoid")
)


def _figure_m(scale: Scale, positions: int) -> list[Row]:
    return [
        Row(f"ω = {w:g}", "conditional", Sampling(_guided_steps(scale), guidance_scale=1 + w, labelled=True))
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


def _posterior(scale: Scale, positions: int) -> list[Row]:
    steps = tuple(n for n in _steps(scale) if n >= 4)
    rows = [Row(f"exact, {n} steps", "bernoulli", Sampling(n, 1.0)) for n in steps]
    return rows + [Row(f"plugin, {n} steps", "bernoulli", Sampling(n, 1.0, posterior="plugin")) for n in steps]


_posterior_claims = all_below(
    ("fd", "exact, 64 steps", "plugin, 64 steps", "at 64 steps eq. (8) is nearer to the data than eq. (10)"),
    ("diversity", "plugin, 64 steps", "exact, 64 steps", "eq. (10) counts evidence twice and is less diverse"),
)


def _posterior_pictures(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
    curves = _by_steps(rows, values, ("exact", "plugin"))
    image = chart(curves, "denoising steps", runner.extractor.distance_name(), log=True)
    grid = sample_rows(runner, [row for row in rows if row.sampling.steps == 64])
    name = runner.scale.label
    return [
        (f"posterior-{name}.png", "Distance against steps, τ = 1; the bands are the spread", image),
        (f"posterior-samples-{name}.png", "64 steps: upper row exact, lower row plugin, the same seeds", grid),
    ]


# -- steps that a network is trained for, and those that it takes -----------------------------------------


def _training_steps(scale: Scale, positions: int) -> list[Row]:
    rows = [Row(f"trained for {T}, {T} steps", f"steps-{T}", Sampling(T)) for T in (4, 8, 16)]
    return rows + [
        Row(f"trained for 64, {n} steps", "bernoulli", Sampling(n), has_bits=n == 64) for n in (4, 8, 16, 64)
    ]


_training_steps_claims = all_below(
    *(("fd", f"trained for {T}, {T} steps", f"trained for 64, {T} steps", f"nearer with {T} steps") for T in (4, 8, 16))
)


def _guided_steps_rows(scale: Scale, positions: int) -> list[Row]:
    return [
        Row("64 steps, without guidance: 64 passes", "conditional", Sampling(64, labelled=True)),
        Row("64 steps, ω = 1: 128 passes", "conditional", Sampling(64, guidance_scale=2.0, labelled=True)),
        Row("16 steps, ω = 1: 32 passes", "conditional", Sampling(16, guidance_scale=2.0, labelled=True)),
        Row("16 steps, without guidance: 16 passes", "conditional", Sampling(16, labelled=True)),
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


def _gaussian_steps(scale: Scale, positions: int) -> list[Row]:
    return [
        Row("Gaussian trained for 1,000, 100 steps", "gaussian", Sampling(100, 1.0)),
        Row("Gaussian trained for 100, 100 steps", "gaussian-100", Sampling(100, 1.0)),
        Row("Gaussian trained for 16, 16 steps", "gaussian-16", Sampling(16, 1.0)),
        Row("Gaussian trained for 16, 16 steps, predicting the noise", "gaussian-16-noise", Sampling(16, 1.0)),
        Row("binary diffusion trained for 16, 16 steps", "steps-16", Sampling(16)),
        Row("binary diffusion trained for 64, 64 steps", "bernoulli", Sampling(64)),
    ]


def _gaussian_steps_claims(values: Values) -> list[Comparison]:
    few, ours = "Gaussian trained for 16, 16 steps", "binary diffusion trained for 16, 16 steps"
    many = "Gaussian trained for 100, 100 steps"
    return [
        below(values, "fd", many, few, "a Gaussian prior trained for 16 steps is farther off than one for 100"),
        below(values, "fd", ours, few, "with 16 steps in training binary diffusion is nearer than a Gaussian prior"),
    ]


def _draws(scale: Scale, positions: int) -> list[Row]:
    n = _guided_steps(scale)
    return [
        Row("drawn anew at each step", "draws-fresh", Sampling(n)),
        Row("four draws of each image, kept", "draws-4", Sampling(n)),
        Row("one draw of each image, kept", "draws-1", Sampling(n)),
    ]


_draws_claims = all_below(
    ("bits_per_code", "drawn anew at each step", "one draw of each image, kept", "a kept draw costs bits"),
    ("fd", "drawn anew at each step", "one draw of each image, kept", "and distance"),
)


def _grids(name: str, caption: str) -> Callable[[Runner, list[Row], Values], list[Picture]]:
    """A picture with one row of samples per row of the table, the same seeds in each."""

    def draw(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
        return [(f"{name}-{runner.scale.label}.png", caption, sample_rows(runner, rows))]

    return draw


EQUAL = "Every row: the same codes, the same transformer (parameters within 1%), steps, batch and learning rate."

ITEMS = [
    Item(
        "table1",
        "Table 1: unconditional generation",
        "comparable quality to latent and absorbing diffusion with desirable diversity, in far fewer steps.",
        _table1,
        _table1_claims,
        pictures=_grids("table1", "Rows as in the table, the first samples of a seed"),
        notes=(
            EQUAL,
            "The Gaussian prior works on its own, real-valued codes of half as many numbers as there are bits.",
        ),
    ),
    Item(
        "table2",
        "Table 2: class-conditional generation",
        "with guidance ω = 2, quality comparable to the state of the art, and samples that teach a classifier.",
        _table2,
        _table2_claims,
        ("fd", "is_mean", "precision", "recall", "accuracy", "cas_top1", "cas_top5"),
        _grids("table2", "Rows as in the table, one sample of each class"),
        ("“Recognised” is the share of samples the judge takes for the class they were asked to be.",),
    ),
    Item(
        "table3",
        "Table 3: a smaller latent grid for larger images",
        "doubling the downsampling, with more bits per position, compromises quality little: so 1024×1024 in one shot.",
        _table3,
        _table3_claims,
        pictures=_grids("table3", "Rows as in the table"),
        notes=(
            "1024×1024 itself is the scale `paper` alone; here the same step, half the latent side, is taken small.",
        ),
    ),
    Item(
        "table5",
        "Table 5: samplers over the same bits",
        "binary diffusion is nearer to the data than an autoregressive prior and absorbing diffusion over "
        "the same codes.",
        _table5,
        _table5_claims,
        ("fd", "precision", "recall", "diversity", "bits_per_code"),
        _grids("table5", "Rows as in the table, the first samples of a seed"),
        (
            EQUAL,
            "Bits per code: exact for the autoregressive prior, upper bounds for the two diffusions.",
            "The last two rows are no part of the claim. The very last trains without the known evidence of a noised "
            "bit (`prior.evidence=false`), as the paper does. The one before was added after the others were known: "
            "the paper predicts z_t ⊕ z_0, which asks the network to multiply what it believes of a bit by the bit it "
            "sees. Told to "
            "predict z_0, the same network learns faster (Table 7); both targets have the same minimum.",
        ),
    ),
    Item(
        "table7",
        "Table 7: λ and prediction targets",
        "λ = 0.1 and the target z_t ⊕ z_0 give the smallest distance.",
        _table7,
        _table7_claims,
        ("fd", "precision", "recall", "bits_per_code"),
        notes=(
            EQUAL,
            "64 steps, at the scale cifar10 16; the target z_{t-1} cannot skip any and always takes 64.",
            "The known evidence of a noised bit is added to the logits in every row but the last (`prior.evidence`), "
            "which the paper does not do: the last row is as the paper has it, and no part of the claim.",
        ),
    ),
    Item(
        "figure4",
        "Figure 4: temperature",
        "temperature decides diversity; too low loses rare patterns, too high breaks samples.",
        _figure4,
        _figure4_claims,
        ("fd", "precision", "recall", "diversity"),
        _grids("figure4", "Temperatures as in the table, from top to bottom, the same seeds"),
    ),
    Item(
        "figure7",
        "Figure 7: number of denoising steps",
        "binary diffusion is more robust to few steps than absorbing diffusion.",
        _figure7,
        _figure7_claims,
        ("fd",),
        _figure7_pictures,
        ("One training serves all numbers of steps; the paper trains one network for each number.",),
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
        _grids("figureM", "ω as in the table, from top to bottom, the same seeds, one sample of each class"),
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
        "Exact posterior against the printed one",
        "(ours, not the paper's) eq. (8) as one affine map converges; eq. (10), as printed and as the "
        "public code samples, "
        "counts the evidence of z_t twice.",
        _posterior,
        _posterior_claims,
        ("fd", "precision", "recall", "diversity"),
        _posterior_pictures,
        ("With a perfect predictor the difference is enumerated in tests/diffusion/test_perfect_predictor.py.",),
    ),
]
