"""One tiny trained run on the embedded digits, made once and shared; tests that change a run copy it first."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

# Tiny tensors gain nothing from threads, and threads that spin while they wait for a busy core cost minutes where more
# of them are asked for than there are cores; children inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LONGEST = ("test_processes.py", "test_reproduce.py", "test_page.py", "test_training.py", "test_outputs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What is imported by now stays: else each full garbage collection, two of a training, looks through all of it,
    which takes longer than a tiny training's steps.
    """
    if "torch" in sys.modules:
        for name in ("accelerate", "torch.utils.tensorboard", "bld.training.recipe"):  # so that they are among it
            with suppress(ImportError):
                import_module(name)
    gc.collect()
    gc.freeze()


TINY_OVERRIDES = [
    "tokenizer.base_channels=8",
    "tokenizer.embed_dim=8",
    "tokenizer_training.steps=6",
    "tokenizer_training.batch_size=32",
    "tokenizer_training.previews=1",
    "prior.dim=32",
    "prior.depth=1",
    "prior.heads=2",
    "prior_training.steps=6",
    "prior_training.batch_size=32",
    "prior_training.previews=1",
    "codes.draws=2",
    "codes.fresh=false",
    "mixed_precision=float32",
]


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """Settings on top of the preset digits that train in a second."""
    return list(TINY_OVERRIDES)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write into it."""
    from bld.training.recipe import Recipe
    from bld.training.run_folder import RunFolder

    run = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    Recipe(run.adopt("digits", TINY_OVERRIDES, "digits"), run, lambda _: None).train()
    return run.path


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of small random PNGs."""
    import numpy as np
    from PIL import Image

    def make(count: int, size: int = 8, classes: int = 0, name: str = "images") -> Path:
        rng = np.random.default_rng(0)
        for i in range(count):
            folder = tmp_path / name / (f"class{i % classes}" if classes else "")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        return tmp_path / name

    return make
