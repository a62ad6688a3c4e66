"""Keyed random draws: every draw is named by (seed, purpose, indices), none is taken from a stream.

So batch size, number of processes, worker count and a restart change nothing: sample 7 of seed 0 is always the same
image, and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib
import math
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


class KeyedDraws:
    """Random numbers for the samples of a batch, on any device; what a row gets depends on its key alone.

    It takes the place of one `torch.Generator` per sample: each call goes on where the last one ended.  The numbers are
    a hash of (key, call, place in the row), written in integer operations, so that a CPU and a GPU draw the same bits
    and nothing is copied or waited for.

    Args:
        keys: int64 (B,), one per sample, well mixed: `keyed_draws` makes them.
        calls: how often numbers have been drawn before.
    """

    def __init__(self, keys: Tensor, calls: int = 0):
        self.keys, self.calls = keys, calls

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: int | slice) -> KeyedDraws:
        """Those of some of the samples, which go on on their own."""
        return KeyedDraws(self.keys[rows].reshape(-1), self.calls)

    def uniform(self, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """float32 (B, …) in [0, 1), multiples of 2⁻²⁴."""
        self.keys = self.keys.to(device, non_blocking=True)
        call, count = self.calls, math.prod(shape[1:])
        self.calls += 1
        # A CPU is several times faster on what stays in its cache.
        rows = max(1, IN_CACHE // max(1, count)) if self.keys.device.type == "cpu" else len(self.keys)
        parts = [hashed_uniform(keys, call, count) for keys in self.keys.split(max(1, rows))]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*shape)


def hashed_uniform(keys: Tensor, call: int | Tensor, count: int) -> Tensor:
    """float32 (B, count) in [0, 1): the numbers of one call of each key, a function of nothing else.

    Two numbers come from one 64-bit hash of key ⊕ hash(call, place): SplitMix64's finalizer (Steele et al. 2014, with
    the constants of Stafford's variant 13), 24 of its upper and 24 of its lower bits.

    Args:
        keys: int64 (B,), well mixed.
        call: int64 scalar or a number, below 2³¹.
        count: of a row, up to 2³².
    """
    places = torch.arange((count + 1) // 2, device=keys.device) + call * 2**32
    hashes = _mixed(_mixed(places * _ODD) ^ keys.unsqueeze(1))
    upper, lower = _shifted(hashes, 40), _shifted(hashes, 8) & (2**24 - 1)
    return torch.cat([upper, lower], 1)[:, :count].float() * 2.0**-24


IN_CACHE = 2**16  # numbers

# As signed numbers, whose products wrap around like those of unsigned ones.
_ODD = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int64 in which every bit of the input changes each bit of the output half of the time."""
    for shift, factor in _FACTORS:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """x moved right by so many bits, zeros coming in (`>>` would repeat the sign)."""
    return (x >> by) & (2 ** (64 - by) - 1)


Generators = KeyedDraws | Sequence[torch.Generator | KeyedDraws] | torch.Generator | None
"""Where the random numbers of a batch come from, as `uniform` takes it."""


def keyed_draws(seed: int, purpose: str, indices: range | Sequence[int] | Tensor) -> KeyedDraws:
    """Random draws for samples that depend on (seed, purpose, index) only, not on the batch or device.

    Pass them as `generator` or `generators`.

    Args:
        seed: of all samples.
        purpose: any text; draws for another purpose are independent. Pipelines use "sample".
        indices: global index of each sample, such as range(100, 200).
    """
    if isinstance(indices, range):  # however long
        numbers = torch.arange(indices.start, indices.stop, indices.step)
    else:
        numbers = torch.as_tensor(indices)
    return KeyedDraws(_mixed(_mixed(numbers.to(torch.int64).reshape(-1) * _ODD) ^ derive_seed(seed, purpose)))


def keyed_permutation(seed: int, purpose: str, index: int, n: int) -> np.ndarray:
    """A permutation of `range(n)`, int64, for example the order of the images in epoch `index`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, index))).permutation(n)


def uniform(shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu") -> Tensor:
    """float32 draws in [0, 1).

    Torch's generators draw where they live, and the numbers are moved then, so that a CPU generator gives every device
    the same. A copy to a GPU does not wait for it if there is one generator per row.

    Args:
        shape: (B, …).
        generator: keyed draws, or a sequence of B generators, each drawing its own row; or one generator for the whole
            batch; or None for torch's global one, which draws on `device` itself.
        device: where the draws are wanted.

    Raises:
        SettingError: if there is not one generator per row.
    """
    if generator is None:
        return torch.rand(tuple(shape), device=device)
    if isinstance(generator, torch.Generator):
        return torch.rand(tuple(shape), generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise SettingError(f"{len(generator)} generators were given for {shape[0]} samples: give one per sample.")
    if isinstance(generator, KeyedDraws):
        return generator.uniform(shape, device)
    rows = [_row(shape[1:], own) for own in generator]
    draws = torch.stack(rows) if rows else torch.empty(tuple(shape))
    pinned = draws.device.type == "cpu" and torch.device(device).type == "cuda"  # from elsewhere a copy waits for it
    return (draws.pin_memory() if pinned else draws).to(device, non_blocking=True)


def _row(shape: Sequence[int], generator: torch.Generator | KeyedDraws) -> Tensor:
    """One sample's draws, where its generator lives."""
    if isinstance(generator, KeyedDraws):
        return generator.uniform((1, *shape))[0]
    return torch.rand(tuple(shape), generator=generator, device=generator.device)


def normal(shape: Sequence[int], generator: Generators, device: torch.device | str = "cpu") -> Tensor:
    """float32 standard normal draws of shape (B, …); generators as for `uniform`."""
    u = uniform(shape, generator, device)
    return torch.special.ndtri(u.clamp(min=2**-25).double()).float()
