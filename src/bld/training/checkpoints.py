"""Checkpoints of a training, each with a checksum; a crash or a full disk leaves the previous one whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bld.errors import CheckpointError
from bld.io.files import file_sha256, read_json, read_tensors, write_json, written_aside
from bld.runtime.distributed import spread_like, whole

ADAMS, MUONS = ("step", "exp_avg", "exp_avg_sq"), ("step", "momentum")
"""What AdamW and Muon keep of a parameter; all but the step's number are shaped as it is."""


@dataclass(frozen=True)
class TrainingState:
    """What a stage needs to go on exactly where it was."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class CheckpointStore:
    """The last few checkpoints of one stage, each a folder `step-00001000` with a checksum.

    Args:
        folder: which holds them.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self.keep = keep
        self._damaged: set[Path] = set()

    def save(self, state: TrainingState) -> Path:
        """Write one checkpoint aside, sync it, rename it; then drop all before it but the last few whole ones.

        First what a process has left half written that was killed is removed: nobody else writes here. Checkpoints of
        higher steps stay: they were found damaged, and until a training that began anew has gone as far, they may yet
        be restored from a copy.

        Returns:
            Its folder.
        """
        target = self.folder / f"step-{state.step:08d}"
        aside = self.folder / f".{target.name}.part"
        for left_over in self.folder.glob(".step-*.part"):
            shutil.rmtree(left_over, ignore_errors=True)
        try:
            weights = aside / "state.safetensors"
            with written_aside(weights) as path:
                save_file({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}, path)
            checksum = _checksum(weights, state.step, state.numbers)
            numbers = {"step": state.step, "sha256": checksum, "numbers": state.numbers}
            write_json(aside / "state.json", numbers)
            shutil.rmtree(target, ignore_errors=True)
            aside.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._damaged.discard(target)
        passed = [folder for folder in self.list() if folder <= target]
        kept = [folder for folder in passed if folder not in self._damaged][-self.keep :]
        for folder in passed:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        return target

    def list(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def latest(self, say: Callable[[str], None]) -> TrainingState | None:
        """The newest checkpoint that is whole, or None; each damaged one is named through `say`."""
        state, damaged = None, {}
        for folder in reversed(self.list()):
            try:
                state = self._load(folder)
                break
            except CheckpointError as error:
                damaged[folder] = error
        then = (
            "No other is whole: the training begins anew." if state is None else f"That of step {state.step:,} is used."
        )
        for reason in damaged.values():
            say(f"{reason} {then}")
        self._damaged = set(damaged)
        return state

    def _load(self, folder: Path) -> TrainingState:
        state = read_json(folder / "state.json")
        weights = folder / "state.safetensors"
        try:
            step, numbers, expected = state["step"], state["numbers"], state["sha256"]
            whole = _checksum(weights, step, numbers) == expected
        except (KeyError, TypeError, OSError):
            whole = False
        if not whole:
            raise CheckpointError(f"The checkpoint {folder.name} in {self.folder} is damaged (its checksum is wrong).")
        return TrainingState(step, read_tensors(weights), numbers)

    def clear(self) -> None:
        """Remove all checkpoints, so that the stage begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _checksum(weights: Path, step: int, numbers: dict[str, Any]) -> str:
    """SHA-256 over everything a checkpoint holds."""
    return hashlib.sha256((json.dumps([step, numbers]) + file_sha256(weights)).encode()).hexdigest()


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's per-parameter tensors, whole, named PREFIX.INDEX.NAME; with FSDP every process must call it."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": whole(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def unpack_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took out; the parameter groups keep their present settings.

    Raises:
        CheckpointError: if the tensors are of another optimizer or of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(prefix + "."):
            index, entry = key[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[entry] = tensor
    groups = [
        (p, MUONS if group.get("is_muon") else ADAMS) for group in optimizer.param_groups for p in group["params"]
    ]
    shapes = [{name: () if name == "step" else tuple(p.shape) for name in names} for p, names in groups]
    for number, entries in state.items():
        found = {name: tuple(value.shape) for name, value in entries.items()}
        wanted = shapes[number] if number < len(shapes) else {}
        if found != wanted:
            raise CheckpointError(
                f"The checkpoint's {prefix} has {found} for its parameter {number}, not {wanted}: leave the settings "
                "of the optimizer and of the network as they were, or choose another --out."
            )
        for name, value in entries.items():
            if name != "step":  # which alone is not shaped, and spread, as the parameter is
                entries[name] = spread_like(value, groups[number][0])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
