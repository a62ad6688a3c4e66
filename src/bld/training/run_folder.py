"""A run's folder: everything a run made lies here, under names that do not change."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from bld.errors import CheckpointError, SettingError, UserError
from bld.io.files import read_json, write_json, written_aside
from bld.serialization.models import GUIDE
from bld.training.checkpoints import CheckpointStore
from bld.training.condition_cache import is_moved
from bld.training.config import is_file, load_settings, nested, overlaid, said_by_files, values_of
from bld.training.settings import Settings, leaves, settings_tree, tree_of

# What cannot change once a stage has begun: another value makes another model, or measures on what it was trained on.
FIXED_BY = {
    "tokenizer": (
        "tokenizer.",
        "tokenizer_training.optimizer",
        "data.crop",
        "data.background",
        "data.resample",
        "data.held_out",
        "seed",
    ),
    "prior": ("prior.", "diffusion.", "prior_training.optimizer", "data.captions", "data.condition"),
}
FREE_KEYS = ("prior.label_dropout", "prior.vlb_weight")
PATH_KEYS = ("data.location", "data.labels", "data.captions", "data.condition", "prior.text_encoder")
"""Settings that may name a file or folder."""

WRITTEN = (
    "data.json", "preset.json", "metrics.jsonl", "progress.json", "report.html", "model_index.json", "index.npz",
    "verified.json", "skipped_images.txt", "tokenizer", "prior", GUIDE, "diffusion", "codes", "conditions", "samples",
    "examples", "checkpoints", "tensorboard",
)  # fmt: skip
"""What a run writes beside its settings."""


class RunInUseError(UserError):
    """Another command is at work in the same run folder."""


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings with every path that leads somewhere made absolute, so that they hold from any folder."""
    sections: dict[str, Any] = {}
    for key in PATH_KEYS:
        name, field = key.split(".")
        section = sections.get(name, getattr(settings, name))
        sections[name] = dataclasses.replace(section, **{field: _absolute(getattr(section, field))})
    return dataclasses.replace(settings, **sections)


def _absolute(text: str) -> str:
    """The path made absolute if something is there, or if it is a pattern of shards; other text stays."""
    if not text or text in ("digits", "auto", "none", "folders"):
        return text
    path = Path(text).expanduser()
    is_pattern = text.endswith(".tar") and re.search(r"[{*]", text) is not None
    return str(path.resolve()) if is_pattern or path.exists() else text


class RunFolder:
    """The folder of one run: its files, settings and progress.

    Args:
        path: created by `adopt`.

    Attributes:
        config: config.yaml, the settings.
        preset: preset.json, what the preset said that it was made with, where that is a file of the user's.
        tokenizer: the trained tokenizer.
        prior: the trained prior.
        guide: the prior early in its training, where it is kept to guide the trained one.
        diffusion: the diffusion of the prior.
        index: model_index.json, with which the folder is a pipeline.
        data: data.json, a record of the images and of which are held out.
        codes: the code cache.
        conditions: the cache of caption or user vectors.
        samples: preview images of the training.
        examples: some held-out images, as PNG.
        tensorboard: logs for TensorBoard.
        metrics: metrics.jsonl.
        report: report.html.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.preset = self.path / "preset.json"
        self.tokenizer = self.path / "tokenizer"
        self.prior = self.path / "prior"
        self.guide = self.path / GUIDE
        self.diffusion = self.path / "diffusion"
        self.index = self.path / "model_index.json"
        self.data = self.path / "data.json"
        self.codes = self.path / "codes"
        self.conditions = self.path / "conditions"
        self.samples = self.path / "samples"
        self.examples = self.path / "examples"
        self.tensorboard = self.path / "tensorboard"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.html"
        self._progress = self.path / "progress.json"
        self._lock = FileLock(self.path / "lock")

    def checkpoints(self, stage: str) -> CheckpointStore:
        """The checkpoints of a stage."""
        return CheckpointStore(self.path / "checkpoints" / stage)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process trains in this folder.

        The operating system holds the lock for as long as its process lives, so that a crash leaves none behind.

        Raises:
            RunInUseError: if another process trains in it already.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        note = self.path / "lock.json"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            holder = ""
            with suppress(CheckpointError, KeyError, TypeError):  # it may be writing that note right now
                entries = read_json(note)
                holder = f" (process {entries['process']} on {entries['host']}, since {entries['since']})"
            raise RunInUseError(
                f"{self.path} is in use by another command{holder}: wait for it, stop it, or choose another --out."
            ) from None
        try:
            if self._lock.lock_counter == 1:
                now = datetime.now().isoformat(sep=" ", timespec="seconds")
                write_json(note, {"process": os.getpid(), "host": socket.gethostname(), "since": now})
            yield
        finally:
            if self._lock.lock_counter == 1:
                note.unlink(missing_ok=True)
            self._lock.release()
            if is_new and [entry.name for entry in self.path.iterdir()] in ([], ["lock"]):  # nothing came of it
                shutil.rmtree(self.path)

    def example_images(self) -> list[Path]:
        """Files of some images that the run is not trained on, as the model sees them."""
        return sorted(self.examples.glob("held-out-*.png"))

    # -- settings -----------------------------------------------------------------------------------------

    def has_settings(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    def settings(self) -> Settings:
        """The settings the run was made with."""
        return load_settings(base=self._tree())

    def _tree(self) -> dict[str, Any]:
        if not self.config.is_file():
            raise CheckpointError(f"{self.path} is not a run folder: it has no config.yaml. Name the --out of a run.")
        try:
            tree = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:  # that it is no UTF-8, for one
            raise CheckpointError(f"{self.config} is damaged and cannot be read as YAML.") from error
        if not isinstance(tree, dict):
            raise CheckpointError(f"{self.config} is damaged: it holds no settings.")
        tree = nested(tree, str(self.config))
        if isinstance(tree.get("diffusion"), dict):
            tree["diffusion"].setdefault("prediction", "epsilon")  # what runs did before it could be chosen
        return tree

    def adopt(
        self,
        preset: str | None,
        overrides: Sequence[str],
        data: str | None,
        writes: bool = True,
        over: dict[str, Any] | None = None,
        check: Callable[[Settings], None] = lambda _: None,
    ) -> Settings:
        """Determine the settings of a new or resumed run and write them to config.yaml.

        A resumed run keeps its settings, except those that another preset, an edit of its own preset's file (as taking
        out a line), or an override changes. Settings that define a model cannot change once its training has started.

        Args:
            preset: name of a preset, or a YAML file; None for none.
            overrides: texts `key=value`, with dotted keys.
            data: where the images are (data.location); None leaves it unchanged.
            writes: whether to write config.yaml; of several processes only one should.
            over: nested dict of settings that overrides the preset, and is overridden by `overrides`.
            check: called with the settings before they are written; it may raise to refuse them.

        Raises:
            SettingError: if a setting is unknown or impossible, no images are named, a fixed setting would change, or a
                new run would write over files of others.
        """
        overrides = [*overrides] if data is None else [*overrides, f"data.location={json.dumps(data)}"]
        if not self.has_settings():
            self._refuse_foreign()
            settings = load_settings(preset=preset, overrides=overrides, over=over)
            if not settings.data.location:
                raise SettingError("No images are named: add --data with a folder, zip, tar, or the word digits.")
        else:
            before = self.settings()
            edited, unsaid = self._edited(preset, before)
            kept = [] if "data.location" in edited else [f"data.location={json.dumps(before.data.location)}"]
            # Its own preset says nothing new but what was edited, on another base all of it.
            other = preset if preset != before.preset or "base" in edited else None
            over = overlaid({} if "base" in edited else tree_of(edited), over or {})
            base = overlaid(settings_tree(before), tree_of(unsaid))
            settings = load_settings(other, base, [*kept, *overrides], over)
            self._refuse_other_shape(before, settings)
        settings = with_absolute_paths(settings)
        self._refuse_name()
        check(settings)
        if not writes:
            return settings
        self.path.mkdir(parents=True, exist_ok=True)
        with written_aside(self.config) as aside:
            aside.write_text(yaml.safe_dump(settings_tree(settings), sort_keys=False), encoding="utf-8")
        if preset is not None and is_file(preset):
            write_json(self.preset, said_by_files(preset))
        return settings

    def _edited(self, preset: str | None, before: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the preset says otherwise than it did, where it is the run's own and a file, by dotted key.

        Returns:
            What is new or another in the file, and what the base or a default says where lines were taken out or the
                base is another. What had been said over such a line, on the command line or by a time budget, stays.
        """
        if preset is None or preset != before.preset or not is_file(preset) or not self.preset.is_file():
            return {}, {}
        said, says = read_json(self.preset), said_by_files(preset)
        edited = {key: value for key, value in says.items() if key not in said or said[key] != value}
        was, now, has = values_of(said), values_of(says), dict(leaves(settings_tree(before)))
        was |= {key: _absolute(was[key]) for key in PATH_KEYS}
        unsaid = {key: now[key] for key in now.keys() - says.keys() if now[key] != was[key] == has[key]}
        return edited, unsaid

    def _refuse_foreign(self) -> None:
        """Refuse to begin a run where it would write over what it has not written."""
        there = next((self.path / name for name in WRITTEN if (self.path / name).exists()), None)
        if there is not None:
            raise SettingError(f"{there} is there already, and no run of {self.path} wrote it: choose another --out.")

    def _refuse_name(self) -> None:
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"{self.path} is not written in UTF-8: choose another --out.") from error

    def _refuse_other_shape(self, before: Settings, after: Settings) -> None:
        old = dict(leaves(settings_tree(before)))
        fixed = tuple(key for stage, keys in FIXED_BY.items() if self.has_begun(stage) for key in keys)
        for key, value in leaves(settings_tree(after)):
            if key.startswith(fixed) and key not in FREE_KEYS and value != old[key]:
                if is_moved(key, before, after, self.conditions):
                    continue
                raise SettingError(
                    f"{self.path} holds a run with {key}={old[key]}, and this command says {value}: "
                    f"choose another --out, or leave {key} as it was."
                )

    def has_begun(self, stage: str) -> bool:
        """Whether there is a checkpoint or a model of the stage."""
        return bool(self.checkpoints(stage).list()) or (self.path / stage).is_dir()

    # -- progress -----------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What each stage has done: steps, seconds, rates, and whether it is finished."""
        return read_json(self._progress) if self._progress.is_file() else {}

    def record(self, stage: str, **entries: Any) -> None:
        """Add entries to a stage's progress."""
        progress = self.progress()
        progress[stage] = {**progress.get(stage, {}), **entries}
        write_json(self._progress, progress)

    # -- metrics ------------------------------------------------------------------------------------------

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one cut short by a crash, or that is no such line, is left out."""
        if not self.metrics.is_file():
            return []
        lines = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and {"stage", "step"} <= line.keys()]

    def forget_metrics_after(self, stage: str, step: int) -> None:
        """Drop a stage's lines past the step it resumes from: they will be written again."""
        kept = [line for line in self.read_metrics() if line["stage"] != stage or line["step"] <= step]
        if self.metrics.is_file():
            with written_aside(self.metrics) as aside:
                aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
