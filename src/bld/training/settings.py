"""Everything that can be set about a run, as one typed tree; presets and `key=value` overrides change its leaves.

The order is: defaults, then the preset (or the run's own `config.yaml`), then the overrides of the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bld.codes import CodeShape
from bld.data import Preprocessing
from bld.diffusion.process import Process
from bld.errors import SettingError, did_you_mean
from bld.priors import KINDS, DenoiserConfig, DiffusionSettings
from bld.priors.config import NetworkSettings
from bld.tokenizer import AutoencoderConfig, ObjectiveConfig


@dataclass(frozen=True)
class DataSettings:
    """Which images, and how they become squares.

    Args:
        location: folder, zip, tar, a pattern of tar shards, a data set of the hub, or the word digits
        labels: auto (a table such as metadata.csv beside the images, else folders), folders, none, or a table's path
        captions: what prior.text_encoder reads: auto (a table beside the images, else the text beside each), none, or a
            table's path
        condition: an .npy of vectors (n, V) to condition on, one for each image in the sorted order of their names, or
            an .npz of vectors and names
        verify: whether every image is decoded once before training, so that unreadable ones are left out
        crop: centre, or random (while training)
        flip: whether images are also shown mirrored
        resample: filter used when resizing; always antialiased
        background: red, green, blue (0-255) behind transparent pixels
        held_out: part of the images (below 1) or number of them kept from training, to measure on; of a small set at
            most a fifth
        held_out_seed: which are kept from training; by default the run's seed.  Runs of several seeds that are to be
            measured on the same images share one
        workers: processes that decode images; only used when they do not fit into memory
        memory_limit_gb: below this size all decoded images are held in memory, and what random crops are cut from
        max_megapixels: of one image, in millions; a larger one counts as unreadable
    """

    location: str = ""
    labels: str = "auto"
    captions: str = "auto"
    condition: str = ""
    verify: bool = True
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    resample: Literal["lanczos", "bicubic", "bilinear", "box"] = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    held_out: float = 0.05
    held_out_seed: int | None = None
    workers: int = 2
    memory_limit_gb: float = 2.0
    max_megapixels: float = 300.0

    def __post_init__(self) -> None:
        for name in ("memory_limit_gb", "max_megapixels"):
            if not getattr(self, name) > 0:
                raise SettingError(f"data.{name} is above 0, not {getattr(self, name)}.")
        if self.workers < 0:
            raise SettingError(f"data.workers is 0 or more, not {self.workers}.")
        if not self.held_out > 0:
            raise SettingError(f"data.held_out is a part below 1 or a number of images, above 0, not {self.held_out}.")

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return int(self.max_megapixels * 1e6)

    def held_out_of(self, images: int) -> float | int:
        """What `ImageSet.split` is to hold out of so many images: a fraction, or a number that is at most a fifth.

        Presets hold out 1000 images, which suits only large sets.
        """
        return self.held_out if self.held_out < 1 else min(int(self.held_out), max(1, images // 5))


@dataclass(frozen=True)
class TrainingSettings:
    """How one stage is trained.

    Args:
        steps: optimizer steps; with a time budget the smaller of the two ends the stage
        batch_size: images (or codes) per step, over all processes together
        accumulate: pieces, one after the other, that each process takes its share of a batch in; more need less memory
        activation_checkpointing: whether activations are computed again in the backward pass instead of kept
        learning_rate: of Adam, after the warm-up
        warmup_steps: steps over which the learning rate rises from 0; at most 5% of a time budget
        decay: what the learning rate does after that; a time budget always anneals (cosine)
        optimizer: adamw, or muon: for the matrices and kernels inside the network's blocks, at twice the rate and with
            a weight decay of 0.1; AdamW for the rest.  It learns more per image, and costs about a fifth more in a
            prior's step of 128 codes of 16 tokens
        beta1: Adam's decay of the mean gradient
        beta2: Adam's decay of the squared gradient
        weight_decay: decoupled; the paper uses none
        clip_norm: gradients are scaled down to this norm; 0 leaves them as they are
        ema_decay: of the weight average that is kept and used
        log_every_steps: steps between two lines in metrics.jsonl
        previews: sample grids and measurements over the whole training
        checkpoint_seconds: time between checkpoints
    """

    steps: int = 100_000
    batch_size: int = 32
    accumulate: int = 1
    activation_checkpointing: bool = False
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    decay: Literal["constant", "cosine", "linear"] = "constant"
    optimizer: Literal["adamw", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    log_every_steps: int = 20
    previews: int = 8
    checkpoint_seconds: float = 120.0

    def check(self, section: str) -> None:
        """Raises SettingError, naming the setting in this section, for a value that is not possible."""
        for names, holds, wanted in (
            (("steps", "batch_size", "accumulate", "log_every_steps"), lambda value: value >= 1, "at least 1"),
            (("learning_rate",), lambda value: value > 0, "above 0"),
            (("ema_decay", "beta1", "beta2"), lambda value: 0 <= value < 1, "0 or more and below 1"),
            (
                ("warmup_steps", "weight_decay", "clip_norm", "previews", "checkpoint_seconds"),
                lambda value: value >= 0,
                "0 or more",
            ),
        ):
            for name in names:
                if not holds(getattr(self, name)):
                    raise SettingError(f"{section}.{name} is {wanted}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class CodeSettings:
    """How images are encoded for the prior.

    Args:
        draws: samples per image (Algorithm 1); 0 stores one code, thresholded at ½ or of the means; vq draws nothing
        fresh: whether each training step draws its codes anew, from probabilities stored instead, a byte a bit
            (bernoulli)
    """

    draws: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise SettingError(f"codes.draws is 0 or more, not {self.draws}.")


@dataclass(frozen=True)
class PriorSettings(NetworkSettings):
    """The transformer; the shape of a code and the number of classes follow from tokenizer and data.

    Args:
        kind: bernoulli (diffusion, the paper's), or what it is compared with: autoregressive or absorbing over the same
            bits, gaussian over a real-valued latent
        evidence: whether what a noised bit says about itself is added to the logits rather than learned
        categorical: of a codebook's indices (tokenizer.bottleneck=vq): whether a position is one of its entries, as is
            usual, rather than as many bits, each by itself (autoregressive, absorbing)
        class_conditional: whether labels are used where the data has them and neither text nor vectors are
        text_encoder: text model of a CLIP (folder, or name on the hub) through which captions condition; empty is off
        label_dropout: probability with which a condition (label, caption or vector) is left out, for guidance, which
            needs it above 0 and below 1
        vlb_weight: λ of eq. (13)
        soft_targets: whether the network is compared with the mean over all codes that the encoder's probabilities and
            the noised bits allow, in the place of the one drawn: the same goal with less variance (bernoulli, with
            codes.fresh, which keeps the probabilities)
        inpainting: part of the training images, 0 to 1, of whose codes a rectangle or all but one is shown without
            noise and not asked for, so that the network knows what it sees around a hole (bernoulli); 0 is the paper's
        guide: part of the training, 0 to below 1, after which a copy of the network is kept, away from which samples
            are guided; 0 keeps none.  Only for priors without a condition
    """

    kind: str = "bernoulli"
    evidence: bool = True
    categorical: bool = True
    class_conditional: bool = True
    text_encoder: str = ""
    label_dropout: float = 0.1
    vlb_weight: float = 0.1
    soft_targets: bool = False
    inpainting: float = 0.0
    guide: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"Unknown prior.kind '{self.kind}'.{did_you_mean(self.kind, KINDS)}")
        if not 0 <= self.label_dropout <= 1:
            raise SettingError(f"prior.label_dropout is a probability, 0 to 1, not {self.label_dropout}.")
        if not 0 <= self.inpainting <= 1:
            raise SettingError(f"prior.inpainting is a part of the images, 0 to 1, not {self.inpainting}.")
        if not 0 <= self.guide < 1:
            raise SettingError(f"prior.guide is a part of the training, 0 to below 1, not {self.guide}.")
        if self.vlb_weight < 0:
            raise SettingError(f"prior.vlb_weight (λ) is 0 or more, not {self.vlb_weight}.")


@dataclass(frozen=True)
class SamplingSettings:
    """How the run's own samples are made; every command that samples can override them.

    Args:
        steps: denoising steps, at most diffusion.steps; 0 is all of them
        temperature: τ; 0.9 in the paper
        guidance_scale: 1 + ω; 1 switches guidance off.  Without classes, captions and vectors it needs prior.guide
    """

    steps: int = 0
    temperature: float = 0.9
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SettingError(f"sampling.temperature (τ) is above 0, not {self.temperature}.")


@dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Args:
        preset: the name of the preset it began with, for the record
        seed: of every random draw
        mixed_precision: float32 (off), bf16, fp16, or auto: bf16 where the device computes it natively and faster
        parallel: what several processes hold: all of each network (ddp), or a piece of it (fsdp), which needs less
            memory and more communication
        sizes_by_budget: whether a time budget chooses tokenizer.base_channels, prior.dim, prior.depth and prior.heads,
            of stages that have not begun, so that this machine can train them in that time; where a user's file or
            overrides set one, that network keeps all its own. Where even the smallest tokenizer sees few images, its
            batch is halved, unless it is set
        tokenizer_share: part of the time budget of a whole run that the tokenizer gets, above 0 and below 1; the prior
            gets the rest
        compile: whether networks are compiled by torch.compile, which takes a minute and pays off in a long training
        trackers: where metrics and previews go besides metrics.jsonl: tensorboard (where it is installed), wandb
    """

    preset: str = ""
    seed: int = 0
    mixed_precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    sizes_by_budget: bool = False
    tokenizer_share: float = 0.4
    compile: bool = False
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    data: DataSettings = field(default_factory=DataSettings)
    tokenizer: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    tokenizer_training: TrainingSettings = field(default_factory=TrainingSettings)
    codes: CodeSettings = field(default_factory=CodeSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    prior_training: TrainingSettings = field(default_factory=TrainingSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self) -> None:
        for key, value in leaves(settings_tree(self)):
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingError(f"{key} is a finite number, not {value}.")
        if not 0 < self.tokenizer_share < 1:
            raise SettingError(
                f"tokenizer_share is a part of a time budget, above 0 and below 1, not {self.tokenizer_share}."
            )
        if self.tokenizer.in_channels != 3:
            raise SettingError(
                f"tokenizer.in_channels={self.tokenizer.in_channels} does not fit the images, which are read as RGB, "
                "greyscale ones too: leave it at 3."
            )
        for section in ("tokenizer_training", "prior_training"):
            getattr(self, section).check(section)
        # Refuses a prior that cannot be built, before any work.
        kind, shape = KINDS[self.prior.kind], self.tokenizer.code_shape
        kind.network.check(self.denoiser(shape, num_classes=1))
        kind.refuse_impossible(self.diffusion, shape)
        self._refuse_prior_of_other_codes()
        if self.objective.code_entropy and not self.tokenizer.bottleneck_class.has_probs:
            raise SettingError(
                f"objective.code_entropy={self.objective.code_entropy} is about drawn bits, and "
                f"tokenizer.bottleneck={self.tokenizer.bottleneck} draws none: set it to 0, or the bottleneck to "
                "bernoulli."
            )
        for section in ("tokenizer_training", "prior_training"):
            if getattr(self, section).optimizer == "muon" and self.parallel == "fsdp":
                raise SettingError(
                    f"{section}.optimizer=muon needs whole matrices, which parallel=fsdp spreads over the processes: "
                    "set one of them to adamw or ddp."
                )
        if self.tokenizer.bottleneck_class.has_probs and self.codes.fresh and not self.codes.draws:
            raise SettingError(
                "codes.fresh=true draws codes and codes.draws=0 draws none: set codes.fresh=false or more draws."
            )
        if self.prior.text_encoder and self.data.condition:
            raise SettingError(
                f"prior.text_encoder={self.prior.text_encoder} and data.condition={self.data.condition} both condition "
                "the prior: leave one of them empty."
            )
        if self.prior.text_encoder and self.data.captions == "none":
            raise SettingError(
                f"prior.text_encoder={self.prior.text_encoder} needs captions, and data.captions=none leaves them out: "
                "set data.captions=auto, or prior.text_encoder empty."
            )
        steps = self.diffusion.build().steps
        if not 0 <= self.sampling.steps <= steps:
            raise SettingError(
                f"sampling.steps is 1 to diffusion.steps ({steps}), or 0 for all, not {self.sampling.steps}."
            )
        if self.diffusion.target == "previous" and self.sampling.steps not in (0, steps):
            raise SettingError(
                "diffusion.target=previous cannot skip steps: set sampling.steps=0, or choose diffusion.target=flip."
            )

    def preprocessing(self) -> Preprocessing:
        """How images become tensors."""
        data = self.data
        return Preprocessing(self.tokenizer.image_size, data.crop, data.flip, data.resample, data.background)

    def _refuse_prior_of_other_codes(self) -> None:
        real, models_real = not self.tokenizer.bottleneck_class.is_binary, KINDS[self.prior.kind].is_real
        if models_real and not real:
            raise SettingError(
                f"prior.kind={self.prior.kind} models real numbers and this tokenizer makes bits: "
                "set tokenizer.bottleneck=gaussian, or another prior.kind."
            )
        if real and not models_real:
            raise SettingError(
                f"prior.kind={self.prior.kind} models bits and tokenizer.bottleneck={self.tokenizer.bottleneck} makes "
                "real numbers: set prior.kind=gaussian, or another bottleneck."
            )

    def process(self, shape: CodeShape, scale: float = 1.0) -> Process:
        """How codes are noised and generated.

        Args:
            shape: of the codes.
            scale: standard deviation of real-valued ones.
        """
        return KINDS[self.prior.kind].of(self.diffusion, shape, scale)

    def denoiser(self, shape: CodeShape, num_classes: int, condition_dim: int = 0) -> DenoiserConfig:
        """The prior's network for codes of this shape and data of that many classes, or of vectors of that width."""
        prior = self.prior
        evidence: Literal["none", "flip", "value"] = "none"
        kind = KINDS[prior.kind]
        if prior.evidence and kind.has_evidence:
            evidence = "flip" if self.diffusion.target == "flip" else "value"
        return DenoiserConfig(
            *shape,
            steps=kind.steps(self.diffusion, shape),
            num_classes=num_classes if prior.class_conditional and not condition_dim else 0,
            evidence=evidence,
            condition_dim=condition_dim,
            entries=kind.takes_entries and prior.categorical and self.tokenizer.bottleneck == "vq",
            **prior.network(),
        )


def settings_tree(settings: Settings) -> dict[str, Any]:
    """The settings as nested dicts of plain values, as `config.yaml` holds them."""
    return plain(dataclasses.asdict(settings))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with these values at their dotted keys."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    return tree


def plain(value: Any) -> Any:
    """The value with lists in place of tuples, wherever in nested dicts."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value
