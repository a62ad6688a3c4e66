"""What a network says of one position: its c bits, each by itself, or which of a codebook's 2^c entries it is.

Where the outputs of a position are as many as its bits, they are the logits of those; else those of the entries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bld.codes import bits_to_index, index_to_bits
from bld.diffusion.process import Generators
from bld.seeding import uniform


def nats(logits: Tensor, bits: Tensor) -> Tensor:
    """-log p(position), (…): of logits (…, c) or (…, 2^c) and bits (…, c)."""
    if logits.shape[-1] == bits.shape[-1]:
        return F.binary_cross_entropy_with_logits(logits.float(), bits.float(), reduction="none").sum(-1)
    return -logits.float().log_softmax(-1).gather(-1, bits_to_index(bits).unsqueeze(-1)).squeeze(-1)


def draw(logits: Tensor, c: int, generators: Generators) -> Tensor:
    """Bits (B, …, c), uint8, of positions drawn by logits (B, …, c) or (B, …, 2^c); generators: one per sample."""
    if logits.shape[-1] == c:
        return (uniform(logits.shape, generators, logits.device) < logits.sigmoid()).to(torch.uint8)
    at = uniform(logits.shape[:-1], generators, logits.device).double().unsqueeze(-1)
    below = logits.double().softmax(-1).cumsum(-1) <= at  # the entry in whose part of [0, 1) the number falls
    return index_to_bits(below.sum(-1).clamp(max=logits.shape[-1] - 1), c)


def probabilities(logits: Tensor, c: int) -> Tensor:
    """P(bit = 1) of each bit, (…, c), whatever the others are."""
    if logits.shape[-1] == c:
        return logits.sigmoid()
    entries = index_to_bits(torch.arange(logits.shape[-1], device=logits.device), c)
    return logits.softmax(-1) @ entries.to(logits.dtype)


def likeliest(logits: Tensor, c: int) -> Tensor:
    """The most probable bits of each position, uint8 (…, c)."""
    return (logits > 0).to(torch.uint8) if logits.shape[-1] == c else index_to_bits(logits.argmax(-1), c)
