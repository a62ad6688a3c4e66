"""What is trained at which scale: every row of a table gets the same data, steps, batch and network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from bld.errors import SettingError, did_you_mean
from bld.experiments.variants import (
    FORMAT_TRAINING,
    GAUSSIAN,
    HALF_SIDE,
    PRIORS,
    QUARTER,
    SIXTEEN_BITS,
    TWO_SIDES,
    Overrides,
    rates_of_bits,
    real_numbers,
    six_formats,
)
from bld.training.config import FAITHFUL, load_settings
from bld.training.settings import leaves, settings_tree


@dataclass(frozen=True)
class Scale:
    """A size at which the experiments are run.

    Attributes:
        name: what `--scale` calls it.
        preset: the settings to start from.
        overrides: settings on top of it, for every run.
        data: where the images are; empty means that the user says it.
        base: the tokenizer whose codes the priors share.
        tokenizers: settings of this one, of `real` and of the formats of Table 4, by name.
        samples: images per measured row.
        reference: real images they are held against, at most.
        classifier_steps: training of the judge; 0 is Inception.
        cas: network of the classification accuracy score, and how often it sees each sample.
        enlarged: pixels per pixel in pictures.
        knows_reference: whether the reference is what the networks are trained on, as in the paper, rather than unseen
            images, which no copy of a training image comes near.
        formats: the tokenizers of Table 4.
        faithful: whether the paper's method is taken to the letter.
        one_tokenizer: whether the priors of all seeds share the codes of one tokenizer, which is then trained the
            longer; the spread is over priors alone.  Table 4 trains its tokenizers for each seed all the same.
        real: the tokenizer of the Gaussian priors.
        small: the tokenizer of the prior on half the latent side.
        rates: learning rate of each kind of prior, where one for all would favour some: half of the best of four on
            held-out images by the experiment `rates`, whose trainings are several times shorter.
        trial_steps: of the trainings of `rates`.
        guidance: of every row that does not choose its own, where priors know classes and each image is asked to be
            of one (1 is without guidance); 0: they know none, as in the paper.
        brief: whether its tables are cut short, as a row takes minutes: Table 5 without rows that Tables 1 and 7 have
            too, Table 7 in 16 steps, curves at fewer numbers of steps.
        judge_flips: whether the judge is shown mirrored images too, though the networks are not.
    """

    name: str
    preset: str
    overrides: Overrides
    data: str
    base: str
    tokenizers: dict[str, Overrides]
    samples: int
    reference: int
    classifier_steps: int
    cas: tuple[str, int]
    enlarged: int
    knows_reference: bool = False
    formats: tuple[str, ...] = ("vq", "real", "binary", "vq-small", "real-small", "binary-small")
    faithful: bool = False
    one_tokenizer: bool = False
    real: str = "real"
    small: str = "binary-small"
    rates: dict[str, float] = field(default_factory=dict)
    trial_steps: int = 300
    guidance: float = 0.0
    brief: bool = False
    judge_flips: bool = False

    @property
    def positions(self) -> int:
        """N, how many positions its usual code has."""
        overrides = (*self.overrides, *self.tokenizers[self.base])
        return load_settings(self.preset, overrides=overrides).tokenizer.code_shape.positions

    @property
    def conditional(self) -> str:
        """The prior of `PRIORS` that knows classes."""
        return "bernoulli" if self.guidance else "conditional"

    def prior(self, name: str) -> Overrides:
        """Settings of a prior of `PRIORS`, at the learning rate of its kind; NAME@RATE is a short trial of another."""
        name, _, rate = name.partition("@")
        settings = PRIORS[name]
        if name == QUARTER:
            steps = load_settings(self.preset, overrides=self.overrides).prior_training.steps
            settings = (f"prior_training.steps={steps // 4}",)
        if rate:
            return (f"prior_training.learning_rate={rate}", f"prior_training.steps={self.trial_steps}", *settings)
        kind = next((word.split("=")[1] for word in settings if word.startswith("prior.kind=")), "bernoulli")
        return (f"prior_training.learning_rate={self.rates[kind]:g}", *settings) if kind in self.rates else settings

    def shares(self, tokenizer: str) -> bool:
        """Whether all seeds have one training of this tokenizer."""
        return self.one_tokenizer and tokenizer in (self.base, self.real, self.small)

    @property
    def label(self) -> str:
        """What its folders and pages are called."""
        if self.name == "paper":
            return f"paper-{self.preset}"
        return f"{self.name}-faithful" if self.faithful else self.name


AS_IN_THE_PAPER = (
    "tokenizer.bit_noise=1",
    "objective.bit_flips=0",
    "codes.fresh=false",
    "prior.patch_size=1",
    "prior.soft_targets=false",
    "prior.inpainting=0",
    "tokenizer_training.optimizer=adamw",
    "prior_training.optimizer=adamw",
    "diffusion.target=flip",
    "sampling.guidance_scale=1",
)
"""What the small presets do otherwise than the paper, but for the tokenizer's cheap body, which all rows share."""

DIGITS = Scale(
    name="digits",
    preset="digits",
    overrides=(
        *AS_IN_THE_PAPER,
        "data.held_out=0.3",
        "data.held_out_seed=0",
        "codes.draws=2",
        "tokenizer.base_channels=32",
        "tokenizer.code_bits=16",
        "tokenizer_training.steps=3000",
        "tokenizer_training.batch_size=64",
        "tokenizer_training.previews=2",
        "tokenizer_training.ema_decay=0.99",
        "prior.dim=128",
        "prior.depth=4",
        "prior.heads=4",
        "prior.class_conditional=false",
        "prior_training.steps=2000",
        "prior_training.batch_size=64",
        "prior_training.ema_decay=0.995",
        "prior_training.previews=2",
    ),
    data="digits",
    base="binary",
    tokenizers=six_formats(16, TWO_SIDES, small_bits=64),
    samples=500,
    reference=5000,
    classifier_steps=300,
    cas=("small", 40),
    enlarged=5,
    rates={"bernoulli": 2e-3, "absorbing": 1e-3, "autoregressive": 4e-3, "gaussian": 2e-3},
    trial_steps=500,
)

CIFAR10 = Scale(
    name="cifar10",
    preset="cifar10",
    overrides=(
        "data.held_out=5000",
        "data.held_out_seed=0",
        "data.flip=false",
        "tokenizer.code_bits=16",
        "tokenizer.base_channels=64",
        "tokenizer.channel_multipliers=[1,2]",
        "tokenizer_training.steps=2400",
        "tokenizer_training.warmup_steps=100",
        "tokenizer_training.previews=2",
        "prior.patch_size=1",  # a token for each position, which the autoregressive prior takes one by one
        "prior.dim=128",
        "prior.depth=4",
        "prior.heads=4",
        "prior.soft_targets=false",
        "prior.inpainting=0",
        "prior.class_conditional=true",
        "prior_training.steps=1300",
        "prior_training.warmup_steps=100",
        "prior_training.ema_decay=0.995",
        "prior_training.previews=2",
        "diffusion.target=flip",
    ),
    data="",
    guidance=4.0,  # unguided samples of trainings of minutes are too far from the data to be compared
    base="binary16",
    tokenizers={
        **SIXTEEN_BITS,
        **{
            name: ("tokenizer_training.optimizer=adamw", "tokenizer_training.batch_size=64", *FORMAT_TRAINING, *format)
            for name, format in rates_of_bits().items()
        },
    },
    real="real8",
    small="binary32-small",
    formats=tuple(rates_of_bits()),
    samples=500,
    reference=5000,
    classifier_steps=2000,
    cas=("small", 100),
    enlarged=2,
    one_tokenizer=True,
    brief=True,
    judge_flips=True,
    rates={"bernoulli": 4e-3, "absorbing": 4e-3, "autoregressive": 4e-3, "gaussian": 4e-3},
)


EMOJI64 = Scale(
    name="emoji64",
    preset="emoji64",
    overrides=(
        "sizes_by_budget=false",
        "data.held_out=0.1",
        "data.held_out_seed=0",
        "tokenizer.base_channels=64",
        "tokenizer_training.steps=2500",
        "tokenizer_training.previews=2",
        "prior.soft_targets=false",
        "prior.inpainting=0",
        "prior.guide=0",
        "prior.dim=256",
        "prior.depth=6",
        "prior_training.steps=2500",
        "prior_training.ema_decay=0.998",
        "prior_training.previews=2",
        "diffusion.target=flip",
        "sampling.guidance_scale=1",
    ),
    data="",
    base="binary4",
    tokenizers={
        "binary4": (),
        "binary8-small": (*TWO_SIDES, "tokenizer.code_bits=8"),
        "real2": real_numbers(2),
        **{name: (*FORMAT_TRAINING, *format) for name, format in six_formats(4, TWO_SIDES, 16).items()},
    },
    real="real2",
    small="binary8-small",
    samples=350,
    reference=5000,
    classifier_steps=0,  # these images have no classes: another judge is named by --features
    cas=("small", 100),
    enlarged=1,
    one_tokenizer=True,
)

EMOJI128 = replace(
    EMOJI64,
    name="emoji128",
    overrides=(
        *EMOJI64.overrides,
        "tokenizer.image_size=128",
        "tokenizer.patch_size=4",
        "tokenizer.channel_multipliers=[1,2]",
        "tokenizer.code_bits=16",
        "prior.patch_size=1",
        "prior.dim=192",
        "prior.heads=6",
        "prior_training.steps=2000",
        "prior_training.batch_size=32",
    ),
    base="binary16",
    tokenizers={
        **SIXTEEN_BITS,
        **{name: (*FORMAT_TRAINING, *format) for name, format in six_formats(16, HALF_SIDE, 64).items()},
    },
    real="real8",
    small="binary32-small",
)


@cache
def _leaves_of(preset: str) -> list[tuple[str, Any]]:
    return list(leaves(settings_tree(load_settings(preset))))


def _as_in(preset: str) -> Overrides:
    """What that preset sets otherwise than `bedrooms256`, the data set of Table 4."""
    theirs, usual = _leaves_of(preset), _leaves_of("bedrooms256")
    differ = (leaf for leaf, before in zip(theirs, usual, strict=True) if leaf != before and leaf[0] != "preset")
    return tuple(f"{name}={json.dumps(value)}" for name, value in differ)


PAPER = Scale(
    name="paper",
    preset="churches256",
    overrides=(*FAITHFUL, "data.held_out_seed=0"),
    data="",
    base="binary",
    tokenizers={
        "binary": (),
        "vq": _as_in("bedrooms256-vq"),
        "real": (*_as_in("bedrooms256-real"), *GAUSSIAN),
        "binary-small": _as_in("bedrooms256-8x8"),
        "vq-small": _as_in("bedrooms256-8x8-vq"),
        "real-small": (*_as_in("bedrooms256-8x8-real"), *GAUSSIAN),
    },
    samples=50_000,
    reference=50_000,
    classifier_steps=0,  # the paper's judge is Inception, which has seen none of its images
    cas=("resnet50", 90),
    enlarged=1,
    knows_reference=True,
)

SCALES = {scale.name: scale for scale in (DIGITS, CIFAR10, EMOJI64, EMOJI128, PAPER)}
PAPER_PRESETS = {
    "table1": ("churches256", "bedrooms256", "ffhq256", "celebahq256"),
    "table2": ("imagenet256",),
    "table3": ("ffhq1024", "celebahq1024"),
    "table4": ("bedrooms256",),
    "table5": ("churches256", "ffhq256"),
    "figureM": ("imagenet256",),
    "guided-steps": ("imagenet256",),
}
"""The data sets of the paper's experiment, as presets, the usual one first; LSUN Churches for the rest."""


def scale_for(name: str, experiment: str, faithful: bool = False, preset: str = "") -> Scale:
    """The scale of that name, at paper scale with a preset of the experiment; SettingError for another name.

    faithful: the paper's method to the letter, as the scale "paper" always has it.  preset: at paper scale, another of
    the experiment's data sets than its first.
    """
    if name not in SCALES:
        raise SettingError(f"Unknown scale '{name}'.{did_you_mean(name, SCALES)}")
    scale = SCALES[name]
    if name == "paper":
        presets = PAPER_PRESETS.get(experiment, (scale.preset,))
        if preset and preset not in presets:
            raise SettingError(f"The paper has {experiment} of {', '.join(presets)}, not of '{preset}'.")
        return replace(scale, preset=preset or presets[0])
    if preset:
        raise SettingError(f"--preset chooses a data set of the scale paper, and the scale {name} has its own.")
    return replace(scale, faithful=True, overrides=(*scale.overrides, *FAITHFUL)) if faithful else scale
