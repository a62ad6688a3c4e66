"""From images to the code cache: once per tokenizer, so that the prior never touches a pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from bld.autoencoder import BinaryAutoencoder
from bld.checkpoint import tokenizer_hash
from bld.code_cache import CacheKey, CodeCache, open_cache, write_cache
from bld.codes import pack
from bld.images import ImageSet
from bld.seeding import keyed_generators

AT_A_TIME = 128  # at 256×256 and below: a few GB


def cache_key(tokenizer: BinaryAutoencoder, images: ImageSet, flips: bool, draws: int, seed: int) -> CacheKey:
    """What the cache of these images through this tokenizer is known by."""
    return CacheKey(
        tokenizer=tokenizer_hash(tokenizer),
        data=images.fingerprint,
        shape=(*tokenizer.code_shape,),
        images=len(images),
        flips=flips,
        draws=draws,
        seed=seed,
        preprocessing=images.preprocessing.key(),
    )


def encode_images(
    folder: Path,
    tokenizer: BinaryAutoencoder,
    images: ImageSet,
    *,
    draws: int,
    seed: int,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> tuple[CodeCache, int]:
    """(the code cache of the images, how many of them had to be encoded): made only as far as it is not there."""
    key = cache_key(tokenizer, images, images.preprocessing.flip, draws, seed)
    cache = open_cache(folder, key, say)
    if cache is not None:
        say(f"The code cache in {folder} fits and is used as it is.")
        return cache, 0
    encoded = 0

    def encode(wanted: range) -> Iterator[np.ndarray]:
        nonlocal encoded
        encoded = len(wanted)
        batch = tokenizer.config.images_at_a_time(AT_A_TIME)
        for start in tqdm(
            range(wanted.start, wanted.stop, batch), desc="encode", unit=f"×{batch} images", disable=None
        ):
            rows = range(start, min(start + batch, wanted.stop))
            yield _packed_views(tokenizer, images.centre(list(rows)), rows, key, accelerator)

    return write_cache(folder, key, encode, images.labels, images.classes), encoded


@torch.no_grad()
def _packed_views(
    tokenizer: BinaryAutoencoder, batch: Tensor, rows: range, key: CacheKey, accelerator: Accelerator
) -> np.ndarray:
    """All views of a batch, packed (n·views, bytes), view by view within each image."""
    batch = batch.to(accelerator.device)
    views: list[np.ndarray] = []
    probs: dict[bool, Tensor] = {}
    for index in range(key.views):
        flipped, draw = key.view(index)
        if flipped not in probs:
            with accelerator.autocast():
                probs[flipped] = tokenizer.encode_probs(batch.flip(-1) if flipped else batch).cpu()
        views.append(pack(draw_bits(probs[flipped], key, rows, index, draw)))
    return np.stack(views, 1).reshape(len(batch) * key.views, -1)


def draw_bits(probs: Tensor, key: CacheKey, rows: range, view: int, draw: int | None) -> Tensor:
    """Bits (B, h, w, c) of one view: thresholded at ½, or drawn with a generator per image."""
    if draw is None:
        return probs > 0.5
    generators = keyed_generators(key.seed, f"codes-{view}", rows)
    return torch.stack([torch.rand(p.shape, generator=g) < p for p, g in zip(probs, generators, strict=True)])
