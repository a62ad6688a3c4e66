"""The PatchGAN discriminator of the adversarial term, and the hinge losses.

GroupNorm, not BatchNorm: nothing depends on the other images of the batch, so data parallelism does not change it, and
a batch may hold a single image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bld.errors import SettingError
from bld.tokenizer.layers import group_norm, preferred_layout


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] → real-or-fake logits (B, 1, h', w'), one per overlapping patch."""

    def __init__(self, base_channels: int = 64, layers: int = 3, in_channels: int = 3):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, base_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = base_channels
        for i in range(1, layers + 1):
            next_width = base_channels * min(2**i, 8)
            stride = 2 if i < layers else 1
            blocks += [nn.Conv2d(width, next_width, 4, stride, 1, bias=False), group_norm(next_width)]
            blocks += [nn.LeakyReLU(0.2)]
            width = next_width
        self.net = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, 1, 1))

    @staticmethod
    def check(size: int, layers: int) -> None:
        """Raises SettingError where nothing would be left of images of size × size pixels."""
        if size >> layers < 3:  # each layer halves it, and two filters of 4×4 remain
            raise SettingError(
                f"objective.discriminator_layers={layers} leaves a discriminator nothing of {size}×{size} pixels: set "
                f"it to {(size // 3).bit_length() - 1} or less, or objective.adversarial=0."
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 1, h', w') logits, float32."""
        return self.net(preferred_layout(images)).float()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean hinge loss of the discriminator: zero when reals score above 1 and fakes below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """Hinge loss of the generator: minus the mean logit of its images."""
    return -fake_logits.mean()
