"""What is trained at which scale: every row of a table gets the same data, steps, batch and network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bld.errors import SettingError, did_you_mean
from bld.training.config import FAITHFUL

Words = tuple[str, ...]


@dataclass(frozen=True)
class Scale:
    """A size at which the experiments are run.

    preset: the settings to start from.  words: settings on top of it, for every run.  data: where the images are; empty
    means that the user says it.  base: the tokenizer whose codes the priors share.  tokenizers: settings of each format
    of Table 4, by name.  samples: images per measured row.  reference: real images they are held against, at most.
    classifier_steps: training of the judge.  enlarged: pixels per pixel in pictures.
    faithful: whether the paper's method is taken to the letter.
    """

    name: str
    preset: str
    words: Words
    data: str
    base: str
    tokenizers: dict[str, Words]
    samples: int
    reference: int
    classifier_steps: int
    enlarged: int
    formats: tuple[str, ...] = ("vq", "real", "binary", "vq-small", "real-small", "binary-small")
    faithful: bool = False

    @property
    def label(self) -> str:
        """What its folders and pages are called."""
        return f"{self.name}-faithful" if self.faithful else self.name


GAUSSIAN: Words = (
    "prior.kind=gaussian",
    "codes.draws=0",
    "codes.fresh=false",
    "diffusion.steps=1000",
    "prior.step_embedding=sinusoidal",
)

PRIORS: dict[str, Words] = {
    "bernoulli": (),
    "autoregressive": ("prior.kind=autoregressive",),
    "absorbing": ("prior.kind=absorbing",),
    "gaussian": GAUSSIAN,
    "lambda-0": ("prior.vlb_weight=0",),
    "lambda-0.01": ("prior.vlb_weight=0.01",),
    "lambda-1": ("prior.vlb_weight=1",),
    "target-z0": ("diffusion.target=z0",),
    "target-previous": ("diffusion.target=previous", "sampling.steps=0"),
    "schedule-cosine": ("diffusion.schedule=cosine",),
    "schedule-sigmoid": ("diffusion.schedule=sigmoid",),
    "conditional": ("prior.class_conditional=true",),
    "bernoulli-small": (),
    "draws-1": ("codes.draws=1", "codes.fresh=false"),
    "draws-4": ("codes.draws=4", "codes.fresh=false"),
    "draws-fresh": ("codes.draws=1", "codes.fresh=true"),
    **{f"steps-{T}": (f"diffusion.steps={T}", "sampling.steps=0") for T in (4, 8, 16)},
    **{f"gaussian-{T}": (*GAUSSIAN, f"diffusion.steps={T}", "sampling.steps=0") for T in (16, 100)},
    "gaussian-16-noise": (*GAUSSIAN, "diffusion.steps=16", "sampling.steps=0", "diffusion.prediction=epsilon"),
    "evidence-off": ("prior.evidence=false",),
}
"""Settings of each prior on top of the scale's; the first is the paper's own: flip, λ = 0.1, linear."""


def _formats(bits: int, small: Words, small_bits: int) -> dict[str, Words]:
    """The six of Table 4: real numbers are half as many as bits, as in the paper."""

    def real(channels: int) -> Words:
        return ("tokenizer.bottleneck=gaussian", f"tokenizer.code_bits={channels}", *GAUSSIAN)

    def vq(code_bits: int) -> Words:
        return ("tokenizer.bottleneck=vq", f"tokenizer.code_bits={code_bits}")

    return {
        "binary": (f"tokenizer.code_bits={bits}",),
        "vq": vq(10),
        "real": real(bits // 2),
        "binary-small": (*small, f"tokenizer.code_bits={small_bits}"),
        "vq-small": (*small, *vq(11)),
        "real-small": (*small, *real(small_bits // 2)),
    }


AS_IN_THE_PAPER = (
    "mixed_precision=float32",
    "tokenizer.bit_noise=1",
    "objective.bit_flips=0",
    "codes.fresh=false",
    "prior.soft_targets=false",
    "diffusion.target=flip",
)
"""What the small presets do otherwise than the paper, but for the tokenizer's cheap body, which all rows share."""

DIGITS = Scale(
    name="digits",
    preset="digits",
    words=(
        *AS_IN_THE_PAPER,
        "codes.draws=2",
        "tokenizer.base_channels=32",
        "tokenizer.code_bits=16",
        "tokenizer_training.steps=800",
        "tokenizer_training.batch_size=64",
        "tokenizer_training.previews=2",
        "tokenizer_training.ema_decay=0.99",
        "prior.dim=192",
        "prior.depth=4",
        "prior.heads=4",
        "prior.class_conditional=false",
        "prior_training.steps=1000",
        "prior_training.batch_size=64",
        "prior_training.learning_rate=2.0e-3",
        "prior_training.ema_decay=0.99",
        "prior_training.previews=2",
    ),
    data="digits",
    base="binary",
    tokenizers=_formats(16, ("tokenizer.channel_multipliers=[1,2]",), small_bits=64),
    samples=500,
    reference=5000,
    classifier_steps=300,
    enlarged=5,
)

CIFAR10 = Scale(
    name="cifar10",
    preset="cifar10",
    words=(
        *AS_IN_THE_PAPER,
        "data.flip=false",
        "codes.draws=1",
        "tokenizer.base_channels=32",
        "tokenizer.code_bits=16",
        "tokenizer_training.batch_size=64",
        "tokenizer_training.steps=1000",
        "tokenizer_training.learning_rate=2.0e-3",
        "tokenizer_training.warmup_steps=50",
        "tokenizer_training.ema_decay=0.99",
        "tokenizer_training.previews=2",
        "prior.dim=192",
        "prior.depth=4",
        "prior.heads=4",
        "prior.class_conditional=false",
        "prior_training.steps=800",
        "prior_training.batch_size=32",
        "prior_training.learning_rate=2.0e-3",
        "prior_training.warmup_steps=50",
        "prior_training.ema_decay=0.99",
        "prior_training.previews=2",
    ),
    data="",
    base="binary16",
    tokenizers={
        "binary16": (),  # trained longer than the formats of Table 4, which are six
        **{
            name: ("tokenizer_training.steps=400", "tokenizer_training.learning_rate=1.0e-3", *words)
            for name, words in _formats(
                32,
                ("tokenizer.channel_multipliers=[1,2,2]",),
                small_bits=128,
            ).items()
        },
    },
    samples=400,
    reference=5000,
    classifier_steps=1500,
    enlarged=2,
)

PAPER = Scale(
    name="paper",
    preset="churches256",
    words=FAITHFUL,
    data="",
    base="binary",
    tokenizers={
        "binary": (),
        "vq": ("tokenizer.bottleneck=vq", "tokenizer.code_bits=10"),
        "real": ("tokenizer.bottleneck=gaussian", "tokenizer.code_bits=16", *GAUSSIAN),
        **{
            f"{name}-small": (
                "tokenizer.channel_multipliers=[1,1,2,2,4,4]",
                "tokenizer.attention_resolutions=[8]",
                *words,
            )
            for name, words in {
                "binary": ("tokenizer.code_bits=128",),
                "vq": ("tokenizer.bottleneck=vq", "tokenizer.code_bits=11"),
                "real": ("tokenizer.bottleneck=gaussian", "tokenizer.code_bits=64", *GAUSSIAN),
            }.items()
        },
    },
    samples=50_000,
    reference=50_000,
    classifier_steps=0,  # the paper's judge is Inception
    enlarged=1,
)

SCALES = {scale.name: scale for scale in (DIGITS, CIFAR10, PAPER)}
PAPER_PRESETS = {"table2": "imagenet256", "figureM": "imagenet256", "table3": "ffhq1024", "table4": "bedrooms256"}
"""The data set of the paper's experiment where it is not LSUN Churches."""


def scale_for(name: str, experiment: str, faithful: bool = False) -> Scale:
    """The scale of that name, at paper scale with the experiment's own preset; SettingError for another name.

    faithful: the paper's method to the letter, as the scale "paper" always has it.
    """
    if name not in SCALES:
        raise SettingError(f"Unknown scale '{name}'.{did_you_mean(name, SCALES)}")
    scale = SCALES[name]
    if name == "paper":
        return replace(scale, preset=PAPER_PRESETS.get(experiment, scale.preset))
    return replace(scale, faithful=True, words=(*scale.words, *FAITHFUL)) if faithful else scale
