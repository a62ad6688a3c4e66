"""What a page shows of a prior that is conditioned on texts or vectors: those of images held out."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from bld.data import read_captions
from bld.errors import UserError
from bld.evaluation.load_run import OpenedRun
from bld.training.condition_cache import VectorCache, texts_fingerprint
from bld.training.order import evenly


class Conditions(NamedTuple):
    """Captions or vectors of held-out images.

    Attributes:
        names: the captions, or the names of the images.
        vectors: float32 (n, V).
        are_captions: which of both the names are.
    """

    names: list[str]
    vectors: Tensor
    are_captions: bool


def held_out_conditions(opened: OpenedRun, most: int) -> Conditions | None:
    """Different captions, or the vectors, of `most` held-out images at most; None where there are none at hand."""
    found = _cache(opened)
    if found is None or opened.held_out is None or opened.pipeline is None:
        return None
    cache, captions = found
    names: dict[str, int] = {}
    for row in opened.held_out.rows[evenly(len(opened.held_out), 4 * most)].tolist():
        name = opened.held_out.source.names[row] if captions is None else captions[row]
        if name and len(names) < most:
            names.setdefault(name, row)
    if not names:
        return None
    vectors = cache.read(torch.tensor(list(names.values())))[:, 1:]
    if captions is not None:
        with contextlib.suppress(UserError):  # without the encoder, the cached ones, which are rounded to 16 bits
            vectors = opened.pipeline.encode_prompt(list(names))  # as whoever repeats the page's command gets them
    return Conditions(list(names), vectors, captions is not None)


def vectors_of(opened: OpenedRun, images: Tensor) -> Tensor | None:
    """The vectors, float32 (n, V), of the held-out images with these indices; None where one of them has none."""
    found = _cache(opened)
    if found is None or opened.held_out is None:
        return None
    rows = found[0].read(opened.held_out.rows[images])
    return rows[:, 1:] if bool((rows[:, 0] > 0).all()) else None


def held_out_vectors(opened: OpenedRun) -> tuple[Tensor, Tensor] | None:
    """The vectors of the held-out images that have a caption or vector; None where none has.

    Returns:
        (indices of these images, int64 (n,); their vectors, float32 (n, V)).
    """
    found = _cache(opened)
    if found is None or opened.held_out is None:
        return None
    rows = found[0].read(opened.held_out.rows)
    known = (rows[:, 0] > 0).nonzero().flatten()
    return (known, rows[known, 1:]) if len(known) else None


def _cache(opened: OpenedRun) -> tuple[VectorCache, list[str] | None] | None:
    """(the run's vectors, the captions they are of)."""
    pipeline, held_out = opened.pipeline, opened.held_out
    if pipeline is None or held_out is None or not pipeline.prior.config.condition_dim:
        return None
    try:
        cache = VectorCache(opened.run.conditions)
        captions = read_captions(held_out.source, opened.settings.data.captions) if cache.key.encoder else None
    except UserError:
        return None
    if cache.key.images != len(held_out.source) or cache.width != pipeline.prior.config.condition_dim:
        return None
    if not cache.key.encoder:
        is_of_these = cache.key.names in ("", texts_fingerprint(held_out.source.names)) and not opened.changed
        return (cache, None) if is_of_these else None
    if captions is None or texts_fingerprint(captions) != cache.key.data:
        return None
    return cache, list(captions)
