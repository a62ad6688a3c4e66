"""From images to the code cache: once per tokenizer, so that the training of the prior needs no pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from bld.data import ImageSet, to_unit
from bld.io.resumable_rows import shown
from bld.seeding import keyed_draws
from bld.serialization.models import tokenizer_hash
from bld.tokenizer import BinaryAutoencoder
from bld.tokenizer.bottlenecks.base import Bottleneck
from bld.training.accelerator import precision_of, processes_of
from bld.training.code_cache import CacheKey, CodeCache, open_cache, to_rows, write_cache

AT_A_TIME = 128  # at 256×256 and below: a few GB


def cache_key(
    tokenizer: BinaryAutoencoder,
    images: ImageSet,
    flips: bool,
    draws: int,
    seed: int,
    precision: str,
    fresh: bool = False,
) -> CacheKey:
    """The key of the cache of these images through this tokenizer.

    Args:
        tokenizer: which encodes.
        images: to encode.
        flips: whether each image is there mirrored too.
        draws: samples per image and flip; 0 is one most probable code.
        seed: of the draws.
        precision: of the encoder's products, "float32", "bf16" or "fp16".
        fresh: whether the bits' probabilities are kept, for codes that are drawn anew whenever they are used.
    """
    values, draws = kept_as(tokenizer.bottleneck, draws, fresh)
    return CacheKey(
        tokenizer=tokenizer_hash(tokenizer),
        data=images.fingerprint,
        shape=(*tokenizer.code_shape,),
        images=len(images),
        flips=flips,
        draws=draws,
        seed=seed,
        preprocessing=images.preprocessing.key(),
        values=values,
        precision=precision,
    )


def kept_as(bottleneck: Bottleneck, draws: int, fresh: bool) -> tuple[str, int]:
    """What a cache holds of each image.

    Args:
        bottleneck: of the tokenizer.
        draws: samples that are asked for.
        fresh: whether the bits' probabilities are to be kept, where there are any.

    Returns:
        `CacheKey.values`, and the draws of each image: 0 for probabilities, which are drawn from later, and for vq,
            which draws nothing.
    """
    if fresh and bottleneck.has_probs:
        return "probabilities", 0
    return "bits" if bottleneck.is_binary else "float16", draws if bottleneck.is_random else 0


def encode_images(
    folder: Path,
    tokenizer: BinaryAutoencoder,
    images: ImageSet,
    *,
    draws: int,
    seed: int,
    accelerator: Accelerator,
    fresh: bool = False,
    workers: int = 0,
    say: Callable[[str], None],
) -> tuple[CodeCache, int]:
    """The code cache of some images, made only as far as it is not there.

    Args:
        folder: of the cache.
        tokenizer: which encodes.
        images: to encode; each is there mirrored too if their preprocessing flips.
        draws: samples per image and flip; 0 is one most probable code.
        seed: of the draws.
        accelerator: precision and processes.
        fresh: whether the bits' probabilities are kept, for codes that are drawn anew whenever they are used.
        workers: processes that decode images.
        say: called with a sentence on a cache that is used as it is, stale or damaged.

    Returns:
        The cache, and about how many of the images had to be encoded.
    """
    key = cache_key(tokenizer, images, images.preprocessing.flip, draws, seed, precision_of(accelerator), fresh)
    cache = open_cache(folder, key, say)
    if cache is not None:
        say(f"The code cache in {folder} fits and is used as it is.")
        return cache, 0
    processes = processes_of(accelerator)
    encoded = 0

    def encode(wanted: list[range]) -> Iterator[np.ndarray]:
        nonlocal encoded
        encoded = sum(len(rows) for rows in wanted) * processes.count  # the others do as many, but for the last block
        batches = images.centres(wanted, workers=workers)
        for rows, batch in zip(shown(wanted, "encode", processes), batches, strict=True):
            yield _views(tokenizer, batch, rows, key, accelerator)

    batch = tokenizer.config.images_at_a_time(AT_A_TIME)
    return write_cache(folder, key, encode, images.labels, images.classes, batch, processes), encoded


@torch.no_grad()
def _views(
    tokenizer: BinaryAutoencoder, batch: Tensor, rows: range, key: CacheKey, accelerator: Accelerator
) -> np.ndarray:
    """All views of a batch, uint8 (n, 3, S, S), as rows (n·views, bytes), view by view within each image."""
    batch = to_unit(batch.to(accelerator.device))
    views: list[np.ndarray] = []
    features: dict[bool, Tensor] = {}
    for index in range(key.views):
        flipped, draw = key.view(index)
        if flipped not in features:
            with accelerator.autocast():
                features[flipped] = tokenizer.features(batch.flip(-1) if flipped else batch)
        if key.values == "probabilities":
            views.append(to_rows(tokenizer.bottleneck.probs(features[flipped]), key))
            continue
        generators = keyed_draws(key.seed, f"codes-{index}", rows)
        noise = None if draw is None else tokenizer.draw_noise(len(batch), generators)
        views.append(to_rows(tokenizer.bottleneck.codes(features[flipped], noise), key))
    return np.stack(views, 1).reshape(len(batch) * key.views, -1)
