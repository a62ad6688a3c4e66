"""The bit convention, in one place.

A *code* is what the tokenizer makes of an image: bits `z ∈ {0, 1}`, dtype uint8.

    grid     (B, h, w, c)    what the tokenizer speaks
    tokens   (B, N, c)       what the prior speaks; N = h·w positions in row-major order
    packed   (B, ⌈N·c/8⌉)    what the code cache stores; bit i of the flattened code is bit (i mod 8) of byte i // 8

Where a position is an entry of a codebook, bit i of the entry's number, of weight 2^i, is bit i of the position.

16×16×32 bits are exactly 1,024 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bld.errors import DataError, SettingError


class CodeShape(NamedTuple):
    """Shape of one code.

    Attributes:
        h: positions in a column.
        w: positions in a row.
        c: bits per position.
    """

    h: int
    w: int
    c: int

    @property
    def positions(self) -> int:
        """N = h·w, the number of tokens."""
        return self.h * self.w

    @property
    def bits(self) -> int:
        """h·w·c, the size of one code in bits."""
        return self.h * self.w * self.c

    @property
    def packed_bytes(self) -> int:
        """⌈h·w·c / 8⌉, the size of one packed code in bytes."""
        return math.ceil(self.bits / 8)

    def __str__(self) -> str:
        return f"{self.h}×{self.w}×{self.c}"


def to_tokens(grid: Tensor) -> Tensor:
    """(B, h, w, c) → (B, N, c): positions in row-major order; no copy where the layout allows."""
    if grid.ndim != 4:
        raise SettingError(f"A code grid has 4 dimensions (B, h, w, c), not the shape {tuple(grid.shape)}.")
    return grid.flatten(1, 2)


def to_grid(tokens: Tensor, shape: CodeShape) -> Tensor:
    """(B, N, c) → (B, h, w, c)."""
    if tokens.ndim != 3 or tokens.shape[1:] != (shape.positions, shape.c):
        raise SettingError(f"Tokens of shape {tuple(tokens.shape)} are not codes of {shape} (B, h·w, c).")
    return tokens.unflatten(1, (shape.h, shape.w))


def index_to_bits(index: Tensor, bits: int) -> Tensor:
    """Integers (…) below 2^bits → their bits (…, bits), uint8, the least first."""
    return (index[..., None] >> torch.arange(bits, device=index.device) & 1).to(torch.uint8)


def bits_to_index(bits: Tensor) -> Tensor:
    """Bits (…, c) of any dtype, the least first → integers (…), int64."""
    return (bits.long() << torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def to_patches(tokens: Tensor, shape: CodeShape, side: int) -> Tensor:
    """(B, N, c) → (B, N/side², side²·c): the positions of each square of side×side in one, row by row."""
    if side == 1:
        return tokens
    h, w, c = shape
    squares = tokens.unflatten(1, (h // side, side, w // side, side)).transpose(2, 3)
    return squares.reshape(len(tokens), h * w // side**2, side**2 * c)


def from_patches(patches: Tensor, shape: CodeShape, side: int) -> Tensor:
    """(B, N/side², side²·c) → (B, N, c): what `to_patches` made, taken apart."""
    if side == 1:
        return patches
    h, w, c = shape
    squares = patches.reshape(len(patches), h // side, w // side, side, side, c).transpose(2, 3)
    return squares.reshape(len(patches), h * w, c)


def pack(codes: Tensor | np.ndarray) -> np.ndarray:
    """Bits (B, …), as tokens or grid → packed bytes (B, ⌈bits/8⌉), uint8: bit i is bit i mod 8 of byte i // 8.

    Raises `DataError` for values other than 0 and 1.
    """
    array = codes.numpy(force=True) if isinstance(codes, Tensor) else codes
    if ((array != 0) & (array != 1)).any():
        raise DataError(f"Bits are 0 or 1; this code holds values from {array.min()} to {array.max()}.")
    flat = array.reshape(len(array), math.prod(array.shape[1:])).astype(np.uint8, copy=False)
    return np.packbits(flat, axis=1, bitorder="little")


def unpack_on_device(packed: Tensor, count: int) -> Tensor:
    """Bytes (B, n), uint8 → the first `count` of their bits, (B, count), uint8, by torch's operations."""
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten(1)[:, :count]


def unpack(packed: np.ndarray | Tensor, shape: CodeShape) -> Tensor:
    """Packed codes → tokens (B, N, c), uint8, where the packed ones are.

    Args:
        packed: (B, ⌈bits/8⌉), uint8.
        shape: of a code.

    Raises:
        DataError: if codes of that shape have another size.
    """
    if packed.ndim != 2 or packed.shape[1] != shape.packed_bytes:
        given = tuple(packed.shape)
        raise DataError(f"Packed codes of {shape} are {shape.packed_bytes} bytes each, not the shape {given}.")
    if isinstance(packed, Tensor) and packed.device.type != "cpu":
        bits = unpack_on_device(packed, shape.bits)
    else:
        bits = torch.from_numpy(np.unpackbits(np.asarray(packed), axis=1, count=shape.bits, bitorder="little"))
    return bits.reshape(len(packed), shape.positions, shape.c)


@dataclass(frozen=True)
class BitStatistics:
    """How a set of codes uses the c bits of a position.

    Attributes:
        usage: (c,), the fraction of ones of each bit, 0 … 1.
        entropy: (c,), the entropy of that fraction in bits, 0 … 1; each position has its own fraction, and their
            entropies are averaged.
        correlation: (c, c), Pearson, pooled over positions; a constant bit has correlation 0 with every other.
        constant: how many of the c bits never change at any position.
        count: how many codes were counted.
    """

    usage: np.ndarray
    entropy: np.ndarray
    correlation: np.ndarray
    constant: int
    count: int

    @property
    def mean_entropy(self) -> float:
        """Mean of `entropy`: information per stored bit if bits were independent, 0 … 1; higher is better."""
        return float(self.entropy.mean())

    @property
    def strongest_correlation(self) -> float:
        """The largest absolute correlation between two different bits."""
        off = np.abs(self.correlation - np.diag(np.diag(self.correlation)))
        return float(off.max()) if off.size > 1 else 0.0


def bit_entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of Bernoulli(p) in bits; 0 at p = 0 and p = 1."""
    q = np.clip(p, 1e-12, 1 - 1e-12)
    return np.where((p <= 0) | (p >= 1), 0.0, -(q * np.log2(q) + (1 - q) * np.log2(1 - q)))


def bit_statistics(tokens: Tensor) -> BitStatistics:
    """Usage, entropy and correlation of codes (B, N, c) of 0 and 1."""
    bits = tokens.to(torch.float64)
    per_position = bits.mean(0).numpy()  # (N, c)
    pooled = bits.flatten(0, 1)  # (B·N, c)
    centred = pooled - pooled.mean(0)
    covariance = (centred.T @ centred / len(pooled)).numpy()
    deviation = np.sqrt(np.diag(covariance))
    scale = np.outer(deviation, deviation)
    correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)
    return BitStatistics(
        usage=pooled.mean(0).numpy(),
        entropy=bit_entropy(per_position).mean(0),
        correlation=correlation,
        constant=int(((per_position == 0) | (per_position == 1)).all(0).sum()),
        count=len(tokens),
    )


class CodeEntropy(NamedTuple):
    """What a code's bits hold, measured on the encoder's probabilities for images that nothing was trained on.

    Attributes:
        images: how many.
        bits: stored per image, N·c.
        noise_bits: H(z|x) per image: the encoder's coin flips, which no prior can predict.
        independent_bits: per image, what a prior needs that knows each bit's frequency and nothing of the others; None
            of a single image, where there are no others to know it from.
        noise_of_bits: float64 (c,), H(z|x) of each of a position's bits, 0 … 1, averaged over images and positions.
    """

    images: int
    bits: int
    noise_bits: float
    independent_bits: float | None
    noise_of_bits: np.ndarray


def code_entropy(probabilities: Tensor) -> CodeEntropy:
    """The entropies of codes that are drawn from the encoder's probabilities.

    `independent_bits` is a code length: each image's bits under the mean probabilities of the others, with half a bit
    of each kind added, so that it does not shrink with the number of images.

    Args:
        probabilities: P(bit = 1), (n, N, c), one row per image.
    """
    p = probabilities.double()
    n, positions, c = p.shape
    noise = torch.from_numpy(bit_entropy(p.numpy()))
    others = (p.sum(0) - p + 0.5) / n  # n - 1 images and one half on either side
    independent = -(torch.xlogy(p, others) + torch.xlogy(1 - p, 1 - others)) / math.log(2)
    return CodeEntropy(
        n, positions * c, float(noise.sum((1, 2)).mean()),
        float(independent.sum((1, 2)).mean()) if n > 1 else None, noise.mean((0, 1)).numpy(),
    )  # fmt: skip


def learned_sentence(bits: int, prior_bits: float, noise_bits: float, independent_bits: float) -> str:
    """How much of a code a prior has learned, in sentences; all numbers are bits per image, as in `CodeEntropy`."""
    could, has = independent_bits - noise_bits, independent_bits - prior_bits
    return (
        f"Of the {bits:,} bits of a code, {noise_bits:,.0f} are coin flips of the encoder that no prior can foretell. "
        f"Taken one by one its bits need {independent_bits:,.0f}, and the prior needs {prior_bits:,.0f}: of the "
        f"{could:,.0f} bits that could be learned, it has learned {has:,.0f}."
    )
