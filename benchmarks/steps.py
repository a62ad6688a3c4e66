"""Building a stage of training at any size without images or hours: for the benchmarks of training steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bld.data import ImageSet
from bld.tokenizer import BinaryAutoencoder, losses
from bld.training.accelerator import make_accelerator
from bld.training.ahead import ahead
from bld.training.code_cache import CacheKey, write_cache
from bld.training.loop import StageRun
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings
from bld.training.stages.encode import kept_as
from bld.training.stages.prior import HeldOutCodes, PriorStage
from bld.training.stages.tokenizer import TokenizerStage


def prior_run(
    settings: Settings, folder: Path, codes: int = 4096, classes: int = 0, shape: tuple[int, int, int] | None = None
) -> StageRun:
    """The prior stage on random codes, of the tokenizer's shape or another, kept as the settings say."""
    values, draws = kept_as(settings.tokenizer.bottleneck_class, settings.codes.draws, settings.codes.fresh)
    key = CacheKey(
        "none", "none", shape or (*settings.tokenizer.code_shape,), images=codes, flips=settings.data.flip,
        draws=draws, seed=0, values=values,
    )  # fmt: skip

    def arrays(wanted):
        for rows in wanted:
            draws, size = np.random.default_rng(rows.start), len(rows) * key.views * key.row_bytes
            is_real = key.values == "float16"
            data = draws.standard_normal(size // 2).astype("<f2").tobytes() if is_real else draws.bytes(size)
            yield np.frombuffer(data, np.uint8).reshape(-1, key.row_bytes)

    labels = torch.arange(codes) % classes if classes else None
    cache = write_cache(folder / "codes", key, arrays, labels, [str(i) for i in range(classes)])
    with torch.device("meta"):
        tokenizer = BinaryAutoencoder(settings.tokenizer)  # the prior never touches a pixel
    tokenizer.to = lambda *_, **__: tokenizer  # type: ignore[method-assign, assignment]
    accelerator = make_accelerator(settings.mixed_precision)
    held_out = HeldOutCodes(cache.read(np.arange(2)), labels[:2] if labels is not None else None)
    run = RunFolder(folder / "run")
    stage = PriorStage(settings, cache, held_out, tokenizer, accelerator, run)
    return StageRun(stage, run, accelerator, None, lambda _: None)


def tokenizer_run(settings: Settings, folder: Path, images: int = 64) -> StageRun:
    """The tokenizer stage on random images; LPIPS, if the objective has it, with random weights."""
    losses.load_lpips = losses.untrained_lpips
    size = settings.tokenizer.image_size
    (folder / "images").mkdir(parents=True)
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    data = ImageSet.open(folder / "images", settings.preprocessing())
    accelerator = make_accelerator(settings.mixed_precision)
    run = RunFolder(folder / "run")
    stage = TokenizerStage(settings, *data.split(images // 2, 0), accelerator, run)
    return StageRun(stage, run, accelerator, None, lambda _: None)


def stepping(going: StageRun) -> Callable[[], None]:
    """One step of the real loop: data, networks, update, weight average."""
    batches = ahead(going.stage.batches(0), going.accelerator.device)

    def step() -> None:
        going._train_step(batches, 0.5)
        going.step += 1
        going.average.update(going.step)

    return step
