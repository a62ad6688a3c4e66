"""The layers of the VQGAN encoder and decoder (Appendix B.1): all take and give (B, C, H, W)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.nn.attention import attention

SMALL = 20_480  # numbers of one image up to which PyTorch convolves it without oneDNN: use_mkldnn in Convolution.cpp
FEW = 15  # images up to which it does so for 1×1 filters, with one thread


class Conv2d(nn.Conv2d):
    """A convolution that, without gradients, gives an image the same numbers in a batch of any size.

    On a CPU PyTorch takes other kernels for one small image and, with one thread, for a few images and 1×1 filters.
    They round otherwise.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H', W')."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        if len(x) > FEW and self.kernel_size == (1, 1) and torch.get_num_threads() == 1:
            return torch.cat([super(Conv2d, self).forward(part) for part in x.split(FEW)])
        if len(x) == 1 and x.numel() <= SMALL:
            return super().forward(torch.cat([x, x]))[:1]
        return super().forward(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or the largest number of groups below that divides the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1×1 convolution where widths differ)."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.skip(x) + y


class AttentionBlock(nn.Module):
    """Single-head self-attention over all H·W positions, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = Conv2d(channels, 3 * channels, 1)
        self.out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        B, C, H, W = x.shape
        qkv = (
            self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        )  # (B, HW, 3C); channels-last it is so already
        y = attention(*qkv.chunk(3, -1))
        return x + self.out(y.transpose(1, 2).reshape(B, C, H, W))


class Downsample(nn.Module):
    """Halves H and W: one row and column of zeros below and right, then a 3×3 convolution of stride 2."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = Conv2d(channels_in, channels_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles H and W: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ShuffleDown(nn.Module):
    """Halves H and W: each square of four positions becomes one of four times the channels, which a 1×1 convolution
    mixes.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = Conv2d(4 * channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/2, W/2)."""
        return self.conv(F.pixel_unshuffle(x, 2))


class ShuffleUp(nn.Module):
    """Doubles H and W: the way back of `ShuffleDown`."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.conv = Conv2d(channels_in, 4 * channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2)


DOWN = {"convolution": Downsample, "shuffle": ShuffleDown}
UP = {"convolution": Upsample, "shuffle": ShuffleUp}
"""How the resolution changes, by `tokenizer.resampling`; convolutions keep the width, which the next block changes."""


class OutConv(nn.Module):
    """Norm, SiLU (unless left out), 3×3 convolution: the way out of encoder and decoder."""

    def __init__(self, channels_in: int, channels_out: int, activation: bool = True):
        super().__init__()
        self.norm = group_norm(channels_in)
        self.conv = Conv2d(channels_in, channels_out, 3, padding=1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H, W)."""
        x = self.norm(x)
        return self.conv(F.silu(x) if self.activation else x)


RECOMPUTED = (ResidualBlock, AttentionBlock, *DOWN.values(), *UP.values(), OutConv)
"""What activation checkpointing computes again."""


def middle(channels: int) -> nn.Sequential:
    """Residual, attention, residual at the lowest resolution."""
    return nn.Sequential(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


def stage(channels_in: int, channels_out: int, blocks: int, attention: bool) -> nn.Sequential:
    """`blocks` residual blocks at one resolution, each followed by attention where asked."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(ResidualBlock(channels_in if i == 0 else channels_out, channels_out))
        if attention:
            layers.append(AttentionBlock(channels_out))
    return nn.Sequential(*layers)


def preferred_layout(x: Tensor) -> Tensor:
    """The feature map in `preferred_format`."""
    return x.contiguous(memory_format=preferred_format(x))


def preferred_format(x: Tensor) -> torch.memory_format:
    """Channels-last, where convolutions are fastest, for this map and those made of it.

    Not where a CPU computes gradients: those of GroupNorm take over 10 times as long in channels-last in bfloat16,
    which on small images is more than convolutions gain (`benchmarks/tokenizer.py`), and in float32 they are three
    times less exact.
    """
    plain = x.device.type == "cpu" and torch.is_grad_enabled()
    return torch.contiguous_format if plain else torch.channels_last
