"""The paper's tables whose rows are priors: Tables 1-3, 5 and 7."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from bld.experiments.comparison import Comparison
from bld.experiments.plots import sample_rows
from bld.experiments.prior_rows import Item, Picture, Row, Values, all_below, below
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.experiments.scales import Scale
from bld.experiments.variants import QUARTER

NO_EVIDENCE = "{}, without known evidence"
EQUAL = (
    "Every row: the same codes, the same transformer (parameters within 1%), steps and batch; at the scales digits and "
    "cifar10 each kind of prior has a learning rate of its own (`rates`), elsewhere all have one."
)
TWICE = ", guidance 2"
GUIDED_TWICE = (
    "Where rows are guided, rivals of the claim stand there at guidance 2 too, since the scale's own was chosen for "
    "binary diffusion; the claim is made against both."
)
CONFIDENT = (
    "Absorbing diffusion that reveals the positions it is surest of first, in the place of random ones, is not the "
    "paper's and no part of the claim; it shows what the network has learnt, as the gate asks."
)


# -- what the sweeps need too ------------------------------------------------------------------------------


def trained_for(steps: int, scale: Scale) -> str:
    """The prior of a row of so many steps: at paper scale one that was trained for them, as in the paper."""
    return f"steps-{steps}" if scale.name == "paper" else "bernoulli"


def guided_steps(scale: Scale) -> int:
    """How many steps a row with a guided prior takes."""
    return 64 if scale.name == "paper" else 16


def second_tries(scale: Scale, *rivals: Row) -> list[Row]:
    """The rivals of a claim guided by 2 too, at a scale whose guidance was chosen for binary diffusion."""
    if not scale.guidance:
        return []
    return [Row(f"{row.label}{TWICE}", row.prior, row.sampling.guided(2.0), has_bits=False) for row in rivals]


def grids(name: str, caption: str) -> Callable[[Runner, list[Row], Values], list[Picture]]:
    """A picture with one row of samples per row of the table, the same seeds in each."""

    def draw(runner: Runner, rows: list[Row], values: Values) -> list[Picture]:
        return [(f"{name}-{runner.scale.label}.png", caption, sample_rows(runner, rows))]

    return draw


# -- Table 1, 2, 3 ----------------------------------------------------------------------------------------


PAPER_TABLE_1 = {
    "churches256": ("4.02 0.64 0.52", "4.07 0.71 0.45", "4.96 0.66 0.48", "4.36 0.68 0.50"),
    "bedrooms256": ("2.95 0.66 0.48", "3.64 0.67 0.38", "4.32 0.62 0.44", "3.85 0.65 0.44"),
    "ffhq256": ("4.98 0.73 0.50", "6.11 0.73 0.48", "6.48 0.71 0.45", "5.85 0.73 0.50"),
    "celebahq256": ("5.11 0.72 0.49", "– – –", "7.80 0.67 0.44", "6.24 0.71 0.48"),
}
"""FID, precision and recall of the four rows; of the smaller scales, LSUN Churches' stand beside."""


def _table1(scale: Scale) -> list[Row]:
    at_paper = scale.name == "paper"
    rows = (
        ("LDM (Gaussian)", "gaussian", Sampling(200 if at_paper else 100, 1.0), "1,000 (200 DDIM)"),
        ("absorbing", "absorbing", Sampling(scale.positions), "256"),
        ("ours, 16 steps", trained_for(16, scale), Sampling(16), "16"),
        ("ours, 64 steps", "bernoulli", Sampling(64), "64"),
    )
    printed_rows = PAPER_TABLE_1.get(scale.preset, PAPER_TABLE_1["churches256"])
    made = [
        Row(label, prior, sampling, {"steps": steps, **dict(zip(("FID", "P", "R"), printed.split(), strict=True))})
        for (label, prior, sampling, steps), printed in zip(rows, printed_rows, strict=True)
    ]
    confident = Row("absorbing, by confidence", "absorbing", Sampling(scale.positions, reveal="confidence"))
    return [*made, confident, *second_tries(scale, *made[:2])]


def _table1_claims(values: Values) -> list[Comparison]:
    rivals = ("absorbing", "LDM (Gaussian)")
    tries = [values[label]["fd"] for label in values if label.removesuffix(TWICE) in rivals]
    best = min(tries, key=fmean)
    words = "comparable: our distance at 64 steps is at most 1.25 times the best of the others'"
    return [Comparison.at_most(words, 1.25, values["ours, 64 steps"]["fd"], best)]


def _table2(scale: Scale) -> list[Row]:
    paper = {"FID": "8.21", "IS": "162.32", "P": "0.72", "R": "0.64", "Top-1": "65.07%", "Top-5": "85.60%"}
    n = guided_steps(scale)
    return [
        Row("real training images", "", Sampling(), {"Top-1": "76.6%", "Top-5": "93.1%"}),
        Row("ours, without guidance", scale.conditional, Sampling(n, guidance_scale=1.0, labelled=True)),
        Row("ours, ω = 1", scale.conditional, Sampling(n, guidance_scale=2.0, labelled=True)),
        Row("ours, ω = 2", scale.conditional, Sampling(n, guidance_scale=3.0, labelled=True), paper),
    ]


_table2_claims = all_below(
    ("fd", "ours, ω = 2", "ours, without guidance", "guidance brings samples nearer to the data"),
    ("is_mean", "ours, without guidance", "ours, ω = 2", "guidance raises the inception score"),
    ("cas_top1", "ours, without guidance", "ours, ω = 2", "guided samples teach a classifier more"),
)


def _table3(scale: Scale) -> list[Row]:
    if scale.name == "paper":  # ffhq1024 is the small grid itself; the usual one, 64×64, is what nobody can afford
        paper = {64: {"FID FFHQ": "6.75", "FID CelebA-HQ": "6.12"}, 256: {"FID FFHQ": "6.35", "FID CelebA-HQ": "6.03"}}
        priors = {64: trained_for(64, scale), 256: "bernoulli"}
        return [Row(f"1024×1024, 32×32 latent, {n} steps", priors[n], Sampling(n), paper[n]) for n in sorted(paper)]
    return [
        Row("usual latent side, 16 steps", "bernoulli", Sampling(16)),
        Row("usual latent side, 64 steps", "bernoulli", Sampling(64)),
        Row("half the latent side, 16 steps", "bernoulli-small", Sampling(16)),
        Row("half the latent side, 64 steps", "bernoulli-small", Sampling(64), {"FID at 1024×1024, FFHQ": "6.75"}),
        Row("usual latent side, a quarter of the training, 64 steps", QUARTER, Sampling(64)),
    ]


def _table3_claims(values: Values) -> list[Comparison]:
    if "usual latent side, 64 steps" not in values:
        return []
    half, usual = (values[f"{side} latent side, 64 steps"]["fd"] for side in ("half the", "usual"))
    return [Comparison.at_most("little compromise: the distance grows by no more than a quarter", 1.25, half, usual)]


# -- Table 5 and 7 ----------------------------------------------------------------------------------------


def _table5(scale: Scale) -> list[Row]:
    """At a guided scale the rivals have two tries at guidance, since the scale's was chosen for binary diffusion."""
    ours = {"steps": "64", "FID Churches": "4.36", "FID FFHQ": "5.85"}
    one_by_one = (f"autoregressive, {scale.positions} steps", "autoregressive", Sampling())
    absorbing = (f"absorbing, {scale.positions} steps", "absorbing", Sampling(scale.positions))
    rivals = [
        Row(*one_by_one, {"steps": "256", "FID Churches": "7.25", "FID FFHQ": "8.23"}),
        Row(*absorbing, {"steps": "256", "FID Churches": "5.44", "FID FFHQ": "7.64"}),
    ]
    others = [
        Row("binary diffusion, 64 steps, target z_0", "target-z0", Sampling(64)),
        Row(NO_EVIDENCE.format("binary diffusion, 64 steps"), "evidence-off", Sampling(64)),
        Row("Gaussian diffusion of real numbers, 100 DDIM steps", "gaussian", Sampling(100, 1.0)),
    ]
    return [
        *rivals,
        *second_tries(scale, *rivals),
        Row("binary diffusion, 64 steps", "bernoulli", Sampling(64), ours),
        *([] if scale.brief else others),  # Tables 1 and 7 have them, for as many trainings again
        Row("binary diffusion, 16 steps", "bernoulli", Sampling(16), has_bits=False),
        Row(
            f"absorbing, {scale.positions} steps, by confidence",
            "absorbing",
            Sampling(scale.positions, reveal="confidence"),
            has_bits=False,
        ),
    ]


def _table5_claims(values: Values) -> list[Comparison]:
    others = [
        label
        for label in values
        if label.startswith(("autoregressive", "absorbing")) and not label.endswith("by confidence")
    ]
    ours = "binary diffusion, 64 steps"
    return [below(values, "fd", ours, label, f"binary diffusion's distance below that of {label}") for label in others]


FLIP, PREVIOUS = "λ = 0.1, target z_t ⊕ z_0", "target z_{t-1}"


def _table7(scale: Scale) -> list[Row]:
    s = Sampling(16 if scale.brief else 64)  # the more steps, the longer; Figure 7 says what they are worth
    whole = [Row(f"{FLIP}, 64 steps", "bernoulli", Sampling(64))] if s.steps != 64 else []
    return [
        Row("λ = 0", "lambda-0", s, {"FID / recall": "5.07 / 0.42"}),
        Row("λ = 0.01", "lambda-0.01", s, {"FID / recall": "4.68 / 0.46"}),
        Row(FLIP, "bernoulli", s, {"FID / recall": "4.36 / 0.50"}),
        Row("λ = 1", "lambda-1", s, {"FID / recall": "5.12 / 0.48"}),
        *whole,
        Row(PREVIOUS, "target-previous", Sampling(64), {"FID / recall": "5.09 / 0.48"}),
        Row("target z_0", "target-z0", s, {"FID / recall": "4.72 / 0.50"}),
        Row(NO_EVIDENCE.format(FLIP), "evidence-off", s),
    ]


def _table7_claims(values: Values) -> list[Comparison]:
    """At equal steps: the target z_{t-1} takes all 64, whatever the others take."""
    whole = f"{FLIP}, 64 steps" if f"{FLIP}, 64 steps" in values else FLIP
    pairs = [(whole if label == PREVIOUS else FLIP, label) for label in values if "evidence" not in label]
    return [
        below(values, "fd", ours, label, f"{ours} below {label}") for ours, label in pairs if label not in (FLIP, whole)
    ]


TABLES = [
    Item(
        "table1",
        "Table 1: unconditional generation",
        "comparable quality to latent and absorbing diffusion with desirable diversity, in far fewer steps.",
        _table1,
        _table1_claims,
        pictures=grids("table1", "Rows as in the table, the first samples of a seed"),
        notes=(
            EQUAL,
            "The Gaussian prior works on its own, real-valued codes of half as many numbers as there are bits.",
            CONFIDENT,
            GUIDED_TWICE,
        ),
    ),
    Item(
        "table2",
        "Table 2: class-conditional generation",
        "with guidance ω = 2, quality comparable to the state of the art, and samples that teach a classifier.",
        _table2,
        _table2_claims,
        ("fd", "is_mean", "precision", "recall", "accuracy", "cas_top1", "cas_top5"),
        grids("table2", "Rows as in the table, one sample of each class"),
        ("“Recognised” is the share of samples the judge takes for the class they were asked to be.",),
    ),
    Item(
        "table3",
        "Table 3: a smaller latent grid for larger images",
        "doubling the downsampling, with more bits per position, compromises quality little: so 1024×1024 in one shot.",
        _table3,
        _table3_claims,
        ("fd", "precision", "recall", "seconds_per_sample"),
        grids("table3", "Rows as in the table"),
        (
            "1024×1024 itself is the scale `paper` alone; here the same step, half the latent side, is taken small.",
            "Half the side has a quarter of the positions, and costs its prior a good quarter of the operations a "
            "step. The row of a quarter of the training, no part of the claim, is about what the usual side is worth "
            "for as many.",
        ),
    ),
    Item(
        "table5",
        "Table 5: samplers over the same bits",
        "binary diffusion is nearer to the data than an autoregressive prior and absorbing diffusion over "
        "the same codes.",
        _table5,
        _table5_claims,
        (
            "fd",
            "precision",
            "recall",
            "diversity",
            "novelty",
            "copies",
            "bits_per_code",
            "bits_to_learn",
            "seconds_per_sample",
        ),
        grids("table5", "Rows as in the table, the first samples of a seed"),
        (
            EQUAL,
            CONFIDENT,
            GUIDED_TWICE,
            "Bits per code: exact for the autoregressive prior, upper bounds for the two diffusions. Without the coin "
            "flips: less what the encoder draws by chance, which no prior can foretell.",
            "Bits are sampled at τ = 0.9, real numbers at 1. Seconds per sample are of batches of 100, decoding "
            "included, the rows in turns.",
            "Distance to training images: the median sample's, pixel by pixel, to the nearest image its prior was "
            "trained on, over that of unseen images rebuilt from their codes. Copies lower it, which a Fréchet "
            "distance rewards, as they are as near to unseen images as any others; blur and paleness lower it too, "
            "being near to many images. Copies are samples nearer to one training image, for their distance to the "
            "tenth nearest, than all but 1% of unseen images rebuilt.",
            "The claim is about autoregressive, absorbing and binary diffusion with the target z_t ⊕ z_0, the paper's, "
            "which asks the network to multiply what it believes of a bit by the bit it sees; z_0 has the same "
            "minimum. Rows of z_0, of training without the known evidence of a noised bit (`prior.evidence=false`), as "
            "the paper does, and of a Gaussian prior of real numbers, half as many as there are bits, are no part of "
            "it; at the scale cifar10 Tables 7 and 1 have them.",
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
            "64 steps, at the scale cifar10 16; the target z_{t-1} cannot skip any and always takes 64, so that there "
            "a row of 64 steps is compared with it.",
            "Bits per code are the bound of the network, which is of all 64 steps, however many a row samples.",
            "The known evidence of a noised bit is added to the logits in every row but that without it "
            "(`prior.evidence`), which the paper does not do: that row is as the paper has it, no part of the claim.",
        ),
    ),
]
