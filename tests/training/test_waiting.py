"""Training steps on `meta`, which stands for a GPU: it holds no number that could be read, and copies are counted.

A vq codebook, which is another library's, does look at numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bld.data import ImageSet
from bld.tokenizer import BinaryAutoencoder, losses
from bld.training.code_cache import CacheKey, write_cache
from bld.training.config import load_settings
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings
from bld.training.stages.base import Stage
from bld.training.stages.encode import kept_as
from bld.training.stages.prior import HeldOutCodes, PriorStage
from bld.training.stages.tokenizer import TokenizerStage

META = torch.device("meta")
SMALL = ["prior.dim=8", "prior.depth=1", "prior.heads=1", "tokenizer.base_channels=8", "tokenizer.embed_dim=8",
         "tokenizer_training.batch_size=4", "prior_training.batch_size=4", "codes.fresh=false", "data.held_out=2",
         "objective.discriminator_channels=8", "objective.adversarial_start=0"]  # fmt: skip


class Copies(TorchDispatchMode):
    """Notes the copies from the CPU to the device for which the host waits."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, rest = func(*args, **(kwargs or {})), kwargs or {}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            waits = not (rest.get("non_blocking") or (len(args) > 2 and args[2]))
            if waits and made.device == META and source.device.type == "cpu":
                self.found.append(f"{func} {tuple(source.shape)}")
        return made


class Numbers(TorchFunctionMode):
    """Notes the tensors that are made on the device of numbers of the host, which is such a copy too."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor) and made.device == META:
            self.found.append(f"{func.__name__} {tuple(made.shape)}")
        return made


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """What the host waits for."""
    found: list[str] = []
    with Copies(found), Numbers(found):
        yield found


class OnMeta:
    """What a stage asks of an accelerator."""

    device, num_processes, process_index, mixed_precision = META, 1, 0, "no"
    autocast = staticmethod(contextlib.nullcontext)


def backward(name: str, loss: torch.Tensor) -> None:
    loss.backward()


def blocking(stage: Stage) -> list[str]:
    """The copies of a step, once what is copied for all steps has been."""
    stage.prepared = stage.networks()
    batches = stage.batches(0)
    for step in range(2):
        stage.train_step(next(batches), step, 0.9, backward)  # type: ignore[arg-type]
    batch = next(batches)
    with noted() as found:
        stage.train_step(batch, 2, 0.9, backward)  # type: ignore[arg-type]
    return found


def prior_stage(settings: Settings, folder: Path) -> PriorStage:
    values, draws = kept_as(settings.tokenizer.bottleneck_class, 1, settings.codes.fresh)
    shape = settings.tokenizer.code_shape
    key = CacheKey("none", "none", (*shape,), images=8, flips=False, draws=draws, seed=0, values=values)
    rows = np.random.default_rng(0).standard_normal((8, key.row_bytes // 2)).astype("<f2").view(np.uint8)
    cache = write_cache(folder / "codes", key, lambda wanted: (rows[r.start : r.stop] for r in wanted),
                        torch.arange(8) % 2, ["a", "b"])  # fmt: skip
    held_out = HeldOutCodes(cache.read(np.arange(2)), None)
    tokenizer = BinaryAutoencoder(settings.tokenizer)
    return PriorStage(settings, cache, held_out, tokenizer, OnMeta(), RunFolder(folder / "run"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [[], ["codes.fresh=true", "prior.soft_targets=true"], ["prior.inpainting=0.5"],
     ["prior.kind=absorbing"], ["prior.kind=autoregressive"],
     ["tokenizer.bottleneck=gaussian", "prior.kind=gaussian"]],
    ids=" ".join,
)  # fmt: skip
def test_a_step_of_the_prior_reads_nothing_and_waits_for_no_copy(overrides: list[str], tmp_path: Path):
    settings = load_settings("digits", overrides=[*SMALL, *overrides])
    assert blocking(prior_stage(settings, tmp_path)) == []


@pytest.mark.parametrize(
    "overrides",
    [["objective.bit_flips=0.1"], ["tokenizer.bottleneck=gaussian", "prior.kind=gaussian"],
     ["objective.perceptual=1", "objective.adversarial=1", "tokenizer.image_size=32"],
     ["objective.adversarial=1", "objective.adversarial_weight=adaptive", "tokenizer.image_size=32"]],
    ids=" ".join,
)  # fmt: skip
def test_a_step_of_the_tokenizer_reads_nothing_and_waits_for_no_copy(overrides: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(losses, "load_lpips", losses.untrained_lpips)
    settings = load_settings("digits", overrides=[*SMALL, *overrides])
    images = ImageSet.open("digits", settings.preprocessing())
    stage = TokenizerStage(settings, *images.split(2, 0), OnMeta(), RunFolder(tmp_path))  # type: ignore[arg-type]
    assert blocking(stage) == []


def test_a_copy_that_waits_is_found():
    with noted() as found:
        torch.ones(3).to(META)
        torch.ones(4).to(META, non_blocking=True)
        torch.empty(5, device=META).copy_(torch.ones(5))
        torch.tensor(0.5, device=META)
        torch.as_tensor([0.5, 1], device=META)
        torch.full((6,), 0.5, device=META)
    assert [line.split(" ", 1)[1] for line in found] == ["(3,)", "(5,)", "()", "(2,)"]
