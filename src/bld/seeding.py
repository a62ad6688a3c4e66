"""Keyed random draws: every draw is named by (seed, purpose, indices), none is taken from a stream.

So batch size, number of processes, worker count and a restart change nothing: sample 7 of seed 0 is the same
image whoever draws it, and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bld.errors import SettingError


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed that depends on all its arguments and on nothing else (BLAKE2b of their text)."""
    text = "/".join((str(int(seed)), purpose, *(str(int(i)) for i in indices)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """A CPU generator for one keyed draw."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


def keyed_generators(seed: int, purpose: str, indices: range | list[int]) -> list[torch.Generator]:
    """One CPU generator per global sample index, as `sample_codes` and `diffuse` take them."""
    return [keyed_generator(seed, purpose, i) for i in indices]


def keyed_permutation(seed: int, purpose: str, index: int, n: int) -> np.ndarray:
    """A permutation of `range(n)`, int64, for example the order of the images in epoch `index`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, index))).permutation(n)


def uniform(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 draws in [0, 1) of shape (B, …).

    generator: one for the whole batch; or a sequence of B, each drawing its own row; or None for torch's global
    one.  Draws are made where the generator lives, then moved, so a CPU generator gives every device the same; a GPU
    need not be waited for.
    """
    if generator is None:
        return torch.rand(tuple(shape), device=device)
    if isinstance(generator, torch.Generator):
        return torch.rand(tuple(shape), generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise SettingError(f"{len(generator)} generators were given for {shape[0]} samples: give one per sample.")
    home = generator[0].device if len(generator) else torch.device("cpu")
    pinned = home.type == "cpu" and torch.device(device).type == "cuda"  # from elsewhere a copy waits for the GPU
    draws = torch.empty(tuple(shape), device=home, pin_memory=pinned)
    for row, own in zip(draws, generator, strict=True):
        torch.rand(row.shape, generator=own, out=row)
    return draws.to(device, non_blocking=True)


def normal(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 standard normal draws of shape (B, …); generators as for `uniform`."""
    u = uniform(shape, generator, device)
    return torch.special.ndtri(u.clamp(min=2**-25).double()).float()
