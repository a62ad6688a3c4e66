"""What becomes of given images: their reconstructions from bits, and the fillings of a hole in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bld.codes import to_grid
from bld.data import psnr
from bld.evaluation.held_out_conditions import vectors_of
from bld.evaluation.load_run import OpenedRun
from bld.report.contents import Contents
from bld.report.pictures import lower_half, masked_picture, picture


def reconstruction_section(opened: OpenedRun, contents: Contents) -> dict[str, Any] | None:
    """Held-out images over their reconstructions; without the images, what the cached codes decode to."""
    if opened.held_out is None:
        return _remembered(opened, contents.reconstructions)
    images = opened.held_out.centre(_even(len(opened.held_out), contents.reconstructions))
    decoded = _decode(opened, _encode(opened, images))
    pairs = []
    for i, decibels in enumerate(psnr(images, decoded).tolist()):
        original = picture(images[i], f"Held-out image {i + 1}")
        again = picture(decoded[i], f"Reconstruction of held-out image {i + 1}", f"{decibels:.1f} dB")
        pairs.append((original, again))
    return {"pairs": pairs}


def _remembered(opened: OpenedRun, count: int) -> dict[str, Any] | None:
    if opened.codes is None:
        return None
    decoded = _from_cache(opened, _even(len(opened.codes), count))
    names = [f"Training image {i + 1}, decoded from its code" for i in range(len(decoded))]
    return {"pairs": [(None, picture(image, name)) for image, name in zip(decoded, names, strict=True)]}


def inpainting_section(opened: OpenedRun, contents: Contents, seed: int) -> dict[str, Any] | None:
    """Each image whole, with its lower half hidden, and filled in several ways."""
    pipeline = opened.pipeline
    assert pipeline is not None
    chosen = _inpainted(opened, contents.inpainted)
    if chosen is None:
        return None
    images, labels, vectors = chosen
    hole = lower_half(pipeline.image_size)
    rows = []
    for i, image in enumerate(images):
        filled = pipeline.inpaint(
            (image[None] + 1) / 2,
            hole,
            contents.fillings,
            labels[i] if labels is not None else None,
            contents.steps,
            condition=vectors[i] if vectors is not None else None,
            generator=seed,
            output_type="pt",
        ).images
        original = picture(image, f"Image {i + 1}, whole")
        masked = masked_picture(image, hole, f"Image {i + 1} with its lower half hidden")
        fillings = [picture(one * 2 - 1, f"Image {i + 1}, filled, version {j + 1}") for j, one in enumerate(filled)]
        rows.append((original, masked, fillings))
    captioned = "caption" if pipeline.index.text_encoder else "vector"
    known = "class" if labels is not None else captioned if vectors is not None else ""
    return {"rows": rows, "class_given": known, "fillings": contents.fillings}


def _inpainted(opened: OpenedRun, count: int) -> tuple[Tensor, list[int] | None, Tensor | None] | None:
    """(images (n, 3, S, S), labels and vectors where the prior knows such): held-out, or decoded from cached codes."""
    assert opened.pipeline is not None
    vectors = None
    if opened.held_out is not None:
        rows = _even(len(opened.held_out), count, offset=0.5)
        images, known = opened.held_out.centre(rows), opened.held_out.labels
        vectors = vectors_of(opened, rows)
    elif opened.codes is not None:
        rows = _even(len(opened.codes), count, offset=0.5)
        images, known = _from_cache(opened, rows), opened.codes.labels
    else:
        return None
    conditional = opened.pipeline.prior.config.num_classes > 0 and known is not None
    return images, known[rows].tolist() if conditional and known is not None else None, vectors


@torch.no_grad()
def _encode(opened: OpenedRun, images: Tensor) -> Tensor:
    return torch.cat([opened.tokenizer.encode(one[None].to(opened.device)) for one in images])


@torch.no_grad()
def _decode(opened: OpenedRun, codes: Tensor) -> Tensor:
    """One at a time: large images take much memory."""
    decoded = [opened.tokenizer.decode(code[None].to(opened.device)).clamp(-1, 1).cpu() for code in codes]
    return torch.cat(decoded)


def _from_cache(opened: OpenedRun, rows: Tensor) -> Tensor:
    assert opened.codes is not None
    return _decode(opened, to_grid(opened.codes.read(rows.numpy()), opened.codes.shape))


def _even(total: int, count: int, offset: float = 0.25) -> Tensor:
    """`count` (at most `total`) different numbers, evenly spread within 0 … total - 1."""
    count = min(count, total)
    return ((torch.arange(count) + offset) * total / count).long()
