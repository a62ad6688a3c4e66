"""The tokenizer's objective, eq. (2): a weighted set of pixel, perceptual and adversarial terms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.errors import MissingPackageError, SettingError, did_you_mean
from bld.runtime.distributed import mean_over_processes
from bld.tokenizer.discriminator import PatchDiscriminator, generator_hinge

LEAST_PIXELS = 16  # of a side, of which VGG-16, that halves it four times, still sees something


@dataclass(frozen=True)
class ObjectiveConfig:
    """The weights ω_i of eq. (2); the paper's are mse = perceptual = adversarial = 1.

    Args:
        mse: weight of the mean squared error, over pixels in [-1, 1]
        l1: weight of the mean absolute error
        perceptual: weight of LPIPS with VGG-16; needs its weights on disk or a network, and images of 16 pixels or
            more; 0 switches it off
        adversarial: weight of the hinge loss against a PatchGAN discriminator; 0 switches it off
        adversarial_weight: fixed, or adaptive: scaled so that its gradient on the last layer is as large as that
            of the other terms
        adversarial_start: part of the training, 0 to 1, after which the adversarial term begins
        adversarial_ramp: part of the training over which it then rises to its full weight
        code_entropy: weight of a penalty on bits that are nearly always 0 or nearly always 1, in bits
        bit_flips: of half of the images in training, up to this part of the bits is turned over before the decoder,
            half as much at the end, so that it forgives a prior's mistakes (bernoulli); the paper's is 0
        commitment: weight of the mean squared distance between features and codebook vectors (vq)
        kl: weight of the KL to the standard normal, in nats, summed over an image's latent (gaussian); latent diffusion
            has 1e-6 too, against a sum over pixels where ours is a mean
        discriminator_channels: width of the discriminator's first layer
        discriminator_layers: its depth; 3 sees patches of 70 pixels
    """

    mse: float = 1.0
    l1: float = 0.0
    perceptual: float = 1.0
    adversarial: float = 1.0
    adversarial_weight: Literal["fixed", "adaptive"] = "fixed"
    adversarial_start: float = 0.0
    adversarial_ramp: float = 0.1
    code_entropy: float = 0.0
    bit_flips: float = 0.0
    commitment: float = 0.25
    kl: float = 1e-6
    discriminator_channels: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        for name in ("mse", "l1", "perceptual", "adversarial", "code_entropy", "commitment", "kl"):
            if getattr(self, name) < 0:
                raise SettingError(f"objective.{name} is a weight, 0 or more, not {getattr(self, name)}.")
        if not 0 <= self.bit_flips <= 0.5:
            raise SettingError(f"objective.bit_flips is a part of the bits, 0 to 0.5, not {self.bit_flips}.")
        if self.mse + self.l1 + self.perceptual <= 0:
            raise SettingError("The objective has no reconstruction term: set objective.mse or objective.l1 above 0.")
        if self.adversarial_weight not in ("fixed", "adaptive"):
            raise SettingError(
                f"Unknown objective.adversarial_weight '{self.adversarial_weight}'."
                f"{did_you_mean(self.adversarial_weight, ['fixed', 'adaptive'])}"
            )
        if not (0 <= self.adversarial_start <= 1 and 0 <= self.adversarial_ramp <= 1):
            raise SettingError(
                "objective.adversarial_start and objective.adversarial_ramp are parts of the training, 0 to 1, "
                f"not {self.adversarial_start} and {self.adversarial_ramp}."
            )

    def check(self, size: int) -> None:
        """Raises SettingError where a term has nothing to see in images of size × size pixels."""
        if self.perceptual > 0 and size < LEAST_PIXELS:
            raise SettingError(
                f"objective.perceptual={self.perceptual:g} asks VGG-16, which sees nothing in {size}×{size} pixels: "
                f"set objective.perceptual=0, or tokenizer.image_size to {LEAST_PIXELS} or more."
            )
        if self.adversarial > 0:
            PatchDiscriminator.check(size, self.discriminator_layers)

    def bit_flips_at(self, progress: float) -> float:
        """The most bits to turn over at this part (0 … 1) of the training, as a part of an image's bits."""
        return self.bit_flips * (1 - progress / 2)

    def adversarial_scale(self, progress: float) -> float:
        """The adversarial weight's factor at this part (0 … 1) of the training: 0 before its start, then a ramp."""
        if self.adversarial == 0 or progress < self.adversarial_start:
            return 0.0
        if self.adversarial_ramp == 0:
            return 1.0
        return min(1.0, (progress - self.adversarial_start) / self.adversarial_ramp)


class ReconstructionLoss(NamedTuple):
    """The total to minimise, and its terms (detached, unweighted) by name for the log."""

    total: Tensor
    terms: dict[str, Tensor]


class ReconstructionObjective(nn.Module):
    """Everything of eq. (2) that looks at reconstructions; holds LPIPS where it is used, nothing trainable.

    Args:
        config: the weights.
        lpips: a network in the place of the trained LPIPS.
    """

    def __init__(self, config: ObjectiveConfig, lpips: nn.Module | None = None):
        super().__init__()
        self.config = config
        self.lpips = (lpips or load_lpips()) if config.perceptual > 0 else None

    def forward(
        self,
        reconstruction: Tensor,
        images: Tensor,
        probs: Tensor | None,
        fake_logits: Tensor | None = None,
        last_layer: nn.Parameter | None = None,
        adversarial_scale: float = 0.0,
        penalties: Mapping[str, Tensor] | None = None,
    ) -> ReconstructionLoss:
        """The weighted sum of the terms.

        Args:
            reconstruction: (B, 3, H, W), near [-1, 1].
            images: (B, 3, H, W) in [-1, 1].
            probs: (B, h, w, c) in (0, 1), if any; needed for the weight `code_entropy`.
            fake_logits: the discriminator's on the reconstruction, given once the adversarial term has begun.
            last_layer: the decoder's last weight, needed for the adaptive weight.
            adversarial_scale: factor of the adversarial weight, as `ObjectiveConfig.adversarial_scale` gives it.
            penalties: the bottleneck's own, unweighted, by the name of their weight; one that no setting is named after
                counts as it is.

        Raises:
            SettingError: for a weight whose input is missing.
        """
        terms = {"mse": F.mse_loss(reconstruction, images), "l1": F.l1_loss(reconstruction, images)}
        if self.lpips is not None:
            terms["perceptual"] = self.lpips(reconstruction, images).mean()
        if self.config.code_entropy > 0:
            if probs is None:
                raise SettingError(
                    f"objective.code_entropy={self.config.code_entropy} is about drawn bits: set it to 0, "
                    "or set tokenizer.bottleneck=bernoulli."
                )
            terms["code_entropy"] = missing_entropy_bits(probs)
        terms |= penalties or {}
        total = sum((getattr(self.config, name, 1.0) * term for name, term in terms.items()), torch.zeros(()))
        if fake_logits is not None and adversarial_scale > 0:
            terms["adversarial"] = generator_hinge(fake_logits)
            weight: float | Tensor = self.config.adversarial * adversarial_scale
            if self.config.adversarial_weight == "adaptive":
                if last_layer is None:
                    raise SettingError("The adaptive adversarial weight needs the decoder's last layer.")
                weight = weight * gradient_ratio(total, terms["adversarial"], last_layer)
            total = total + weight * terms["adversarial"]
        return ReconstructionLoss(total, {name: term.detach() for name, term in terms.items()})


def missing_entropy_bits(probs: Tensor) -> Tensor:
    """1 - H(batch mean of each bit), averaged over bits and positions, in bits: 0 when every bit is used evenly.

    The mean is over the batches of all processes.
    """
    p = mean_over_processes(probs.mean(0)).clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2())
    return (1 - entropy).mean()


def gradient_ratio(numerator: Tensor, denominator: Tensor, weight: nn.Parameter) -> Tensor:
    """‖∂numerator/∂weight‖ / (‖∂denominator/∂weight‖ + 10⁻⁴), detached, at most 10⁴ (VQGAN's adaptive weight)."""
    grads = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (numerator, denominator))
    top, bottom = (mean_over_processes(grad).norm() for grad in grads)
    return (top / (bottom + 1e-4)).clamp(0, 1e4).detach()


def untrained_lpips() -> nn.Module:
    """LPIPS as large as the trained one, with random weights: to measure what it costs without a download."""
    import lpips

    with warnings.catch_warnings():  # about how lpips asks torchvision
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval().requires_grad_(False)


def load_lpips() -> nn.Module:
    """LPIPS with VGG-16, frozen.

    Raises:
        MissingPackageError: without the package.
        SettingError: if VGG-16's weights cannot be loaded.
    """
    try:
        import lpips
    except ImportError as error:
        raise MissingPackageError(
            "The perceptual term needs LPIPS: pip install 'binary-latent-diffusion[lpips]', "
            "or switch the term off with objective.perceptual=0."
        ) from error
    try:
        model = lpips.LPIPS(net="vgg", verbose=False)
    except (OSError, RuntimeError) as error:
        raise SettingError(
            "The perceptual term (objective.perceptual > 0) needs VGG-16's weights, which could not be loaded "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): connect to the network once, "
            "or switch the term off with objective.perceptual=0."
        ) from error
    return model.eval().requires_grad_(False)
