"""Where a stage's metrics go: metrics.jsonl always, and the trackers of the settings, through Accelerate.

`trackers: [tensorboard]`, the default, is used where it is installed; `wandb` (Weights & Biases) where it is asked for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bld.errors import MissingPackageError, SettingError
from bld.io.files import read_json, write_json
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings, settings_tree

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Say = Callable[[str], None]


class MetricsLog:
    """Appends to metrics.jsonl and to the trackers.

    Args:
        run: whose metrics.jsonl it is.
        stage: named in every line, and before the names of metrics in the trackers.
        settings: of the run; they name the trackers.
        say: called with a sentence if TensorBoard is wanted and not installed.
        step: that the stage goes on from. TensorBoard forgets what a stopped run logged past it, and it is logged
            again; at 0 Weights & Biases begins a new run.
        writes: whether anything is written; of several processes only one does.

    Raises:
        MissingPackageError: if wandb is wanted and not installed.
        SettingError: if Weights & Biases refuses.
    """

    def __init__(
        self, run: RunFolder, stage: str, settings: Settings, say: Say, step: int = 0, writes: bool = True
    ) -> None:
        self.stage = stage
        self._file: Any = None
        self._trackers: list[GeneralTracker] = []
        if not writes:
            return
        run.path.mkdir(parents=True, exist_ok=True)
        self._trackers = [tracker for name in settings.trackers if (tracker := OPEN[name](run, stage, settings, step))]
        if "tensorboard" in settings.trackers and not _is_installed("tensorboard"):
            say("TensorBoard is not installed: metrics go to metrics.jsonl alone (extra: tensorboard).")
        self._file = run.metrics.open("a", encoding="utf-8")

    def write(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """Log the values: one line with stage, step, seconds of training so far and values, and to the trackers."""
        if self._file is None:
            return
        entry = {"stage": self.stage, "step": step, "seconds": round(seconds, 2), **values}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log({f"{self.stage}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, step: int, path: Path) -> None:
        """Give a picture that was written to a file to the trackers; metrics.jsonl holds numbers only."""
        if not self._trackers:
            return
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))[None]  # (1, H, W, 3) uint8
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({f"{self.stage}/preview": pixels}, step=step, **layout)

    def sync(self) -> None:
        """Make sure that the lines so far are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close all of them."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.finish()


def refuse_missing_trackers(settings: Settings) -> None:
    """Raise `MissingPackageError`, before any work, if a tracker that was asked for is not installed.

    That can only be wandb: TensorBoard is used where it is installed.
    """
    if "wandb" in settings.trackers and not _is_installed("wandb"):
        raise MissingPackageError(
            "The tracker wandb is not installed: pip install 'binary-latent-diffusion[wandb]', "
            "or take it out of trackers."
        )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _tensorboard(run: RunFolder, stage: str, settings: Settings, step: int) -> GeneralTracker | None:
    """Event files in RUN/tensorboard/STAGE; those past the step that is resumed from are purged."""
    if not _is_installed("tensorboard"):
        return None
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker(stage, run.tensorboard, purge_step=step + 1)
    tracker.start()
    return tracker


def _wandb(run: RunFolder, stage: str, settings: Settings, step: int) -> GeneralTracker:
    """One run of Weights & Biases a stage, grouped by the run's folder; a stage that is resumed goes on in its own.

    What is logged again after a resume, W&B leaves out, as its steps only rise: it is the same to the bit.
    """
    refuse_missing_trackers(settings)
    import wandb
    from accelerate.tracking import WandBTracker

    name = run.path.resolve().name
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "bld"),
        id=_wandb_id(run, stage, is_new=step == 0),
        resume="allow",
        name=f"{name}/{stage}",
        group=name,
        job_type=stage,
        dir=str(run.path),
        config=settings_tree(settings),
        settings=wandb.Settings(silent=True, console="off"),
    )
    try:
        tracker.start()
    except wandb.errors.Error as error:
        raise SettingError(
            f"Weights & Biases refused ({' '.join(str(error).split()).rstrip('.')}): run wandb login, set "
            "WANDB_MODE=offline, or take wandb out of trackers."
        ) from error
    return tracker


def _wandb_id(run: RunFolder, stage: str, is_new: bool) -> str:
    """The name by which W&B knows a stage of this run, kept beside its files; a stage begun anew gets a new one."""
    note = run.path / "wandb" / "ids.json"
    known = read_json(note) if note.is_file() else {}
    if is_new or stage not in known:
        known = {**known, stage: secrets.token_hex(4)}
        write_json(note, known)
    return known[stage]


OPEN: dict[str, Callable[[RunFolder, str, Settings, int], Any]] = {"tensorboard": _tensorboard, "wandb": _wandb}
