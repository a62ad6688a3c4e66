"""A run that is given another's tokenizer and codes has them whole, wherever the giving was interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bld.experiments.handed_on import hand_on
from bld.experiments.runner import Runner
from bld.io.files import read_json
from bld.serialization import models
from bld.serialization.models import load_tokenizer
from bld.training.code_cache import HEADER
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder

from .tiny import TINY


@pytest.fixture
def base(tmp_path: Path) -> RunFolder:
    """A run with a tokenizer and codes, as far as the giving looks at them."""
    run = RunFolder(tmp_path / "base")
    for folder, names in (
        (run.tokenizer, ("config.json", "model.safetensors")),
        (run.codes, ("codes.bin", "header.json")),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(f"the base's {name}")
    run.data.write_text('{"images": 3}')
    run.record("tokenizer", steps=4)
    return run


def contents(run: RunFolder) -> dict[str, str]:
    return {str(path.relative_to(run.path)): path.read_text() for path in run.path.rglob("*") if path.is_file()}


def interrupted_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Stop at the moment-th change to the disk: at an even one before it, else after it."""
    moments = iter(range(10_000))

    def stopping(change: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **more: Any) -> Any:
            if next(moments) == moment:
                raise KeyboardInterrupt
            done = change(*words, **more)
            if next(moments) == moment:
                raise KeyboardInterrupt
            return done

        return run

    for module, name in ((os, "mkdir"), (os, "link"), (os, "replace"), (os, "rename"), (shutil, "copyfile")):
        monkeypatch.setattr(module, name, stopping(getattr(module, name)))


def test_a_giving_that_was_interrupted_anywhere_is_made_whole_by_the_next(base, tmp_path, monkeypatch):
    given = contents(base)
    for moment in range(200):
        run = RunFolder(tmp_path / f"run{moment}")
        run.path.mkdir()
        with monkeypatch.context() as patch:
            interrupted_at(patch, moment)
            try:
                hand_on(base, run)
                break
            except KeyboardInterrupt:
                pass
        hand_on(base, run)
        hand_on(base, run)
        assert contents(run).keys() == given.keys() and contents(base) == given
        assert read_json(run.data) == read_json(base.data) and run.progress() == base.progress()
        for name in ("tokenizer/model.safetensors", "codes/codes.bin"):
            assert contents(run)[name] == given[name]
    assert 10 < moment < 199


def test_an_experiment_that_was_stopped_while_a_prior_got_its_codes_goes_on(tmp_path, monkeypatch):
    copytree = shutil.copytree

    def stopped(source: Path, *words: Any, **more: Any) -> Any:
        if Path(source).name == "tokenizer":
            raise KeyboardInterrupt
        return copytree(source, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", stopped)
        with pytest.raises(KeyboardInterrupt):
            Runner(TINY, tmp_path, lambda _: None).prior("bernoulli", 0)
    run = Runner(TINY, tmp_path, lambda _: None).prior("bernoulli", 0)
    assert run.index.is_file() and run.progress()["prior"]["steps"] == 4


def test_a_tokenizer_that_was_stopped_before_it_drew_codes_of_its_own_draws_them(tmp_path, monkeypatch):
    """Seeds share a tokenizer, not draws: those of seed 0 would be taken for its own, and drawn anew for each prior."""
    runner = Runner(replace(TINY, one_tokenizer=True), tmp_path, lambda _: None)
    runner.tokenizer("binary", 0, with_codes=True)
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.tokenizer("binary", 1, with_codes=True)
    again = Runner(runner.scale, tmp_path, lambda _: None).tokenizer("binary", 1, with_codes=True)
    assert read_json(again.codes / HEADER)["key"]["seed"] == 1


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", [(RunFolder, "record"), (models, "write_json")], ids=["record", "config"])
def test_a_tokenizer_that_was_stopped_while_it_was_saved_is_finished_before_it_is_handed_on(
    where, tmp_path, monkeypatch
):
    def stopped(*words: Any, **_: Any) -> None:
        if words[1:] != ("data",):  # which is recorded before the training
            raise KeyboardInterrupt

    runner = Runner(replace(TINY, one_tokenizer=True), tmp_path, lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(*where, stopped)
        with pytest.raises(KeyboardInterrupt):
            runner.tokenizer("binary", 0)
    assert (tmp_path / "tiny" / "tokenizers" / "binary-seed0" / "tokenizer" / "model.safetensors").is_file()
    for seed in (0, 1):
        run = runner.tokenizer("binary", seed)
        assert run.progress()["tokenizer"]["goal"] and load_tokenizer(run.tokenizer)
