"""LPIPS between many images: each passes the network once, and pairs are compared by its features."""

from __future__ import annotations

import torch
from torch import Tensor

from bld.errors import SettingError
from bld.evaluation.metrics.base import of_reconstructions
from bld.runtime.precision import in_float32
from bld.tokenizer.losses import LEAST_PIXELS


@of_reconstructions("lpips")
class PerceptualDistance:
    """LPIPS with VGG-16 on a device, taken apart into features of an image and the distance of two images' features."""

    def __init__(self, device: torch.device | str = "cpu"):
        from bld.tokenizer.losses import load_lpips

        try:
            self.model = load_lpips().to(device)
        except SettingError as error:
            raise SettingError(
                "lpips needs VGG-16's weights, which could not be loaded: connect to the network once, or leave lpips "
                "out."
            ) from error
        self.device = torch.device(device)

    @torch.no_grad()
    @in_float32()
    def features(self, images: Tensor) -> list[Tensor]:
        """Images (n, 3, H, W) in [-1, 1] → per layer (n, C, h, w), of length 1 at each position."""
        scaled = self.model.scaling_layer(images.to(self.device).float())  # type: ignore[operator]
        try:
            layers = self.model.net.forward(scaled)  # type: ignore[union-attr]
        except RuntimeError as error:
            if min(images.shape[-2:]) >= LEAST_PIXELS:
                raise
            size = f"{images.shape[-1]}×{images.shape[-2]}"
            raise SettingError(f"lpips asks VGG-16, which sees nothing in {size} pixels: leave lpips out.") from error
        return [layer / (layer.square().sum(1, keepdim=True).sqrt() + 1e-10) for layer in layers]

    @torch.no_grad()
    @in_float32()
    def between(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Distances (n,) by features: of each image of one side to that of the other, or of a single image to each."""
        parts = zip(self.model.lins, ours, theirs, strict=True)  # type: ignore[arg-type]
        return torch.stack([lin((a - b).square()).mean((1, 2, 3)) for lin, a, b in parts]).sum(0)

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """(n,): the distance of each two images."""
        return self.between(self.features(images), self.features(others))
