"""One loop for every stage: resume, train, and once in a while log, look and save."""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from bld.checkpoint import TrainingState, pack_optimizer, unpack_optimizer
from bld.errors import CheckpointError, SettingError, UserError
from bld.training.ema import WeightAverage
from bld.training.learning_rate import StageClock, learning_rate
from bld.training.run_folder import MetricsLog, RunFolder
from bld.training.settings import TrainingSettings

MOST_BAD_STEPS_IN_A_ROW = 20

Say = Callable[[str], None]


class DivergedError(UserError):
    """Losses or gradients were not finite too many times in a row."""


class Stage(ABC):
    """What the loop needs of a stage; `model` is what is averaged, saved and used."""

    name: str
    model: nn.Module
    training: TrainingSettings

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks with an optimizer of their own, by name."""

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[Any]:
        """This process's share of the batch of each step, from the given one on, without end."""

    @abstractmethod
    def train_step(self, batch: Any, step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """One step: losses, backward, `update(name, loss)` for each network.  Returns what to log."""

    @abstractmethod
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Figures on held-out images, to log."""

    @abstractmethod
    def preview(self, averaged: nn.Module, path: Path) -> None:
        """Write a picture of the present state."""

    @abstractmethod
    def save(self, averaged: nn.Module) -> None:
        """Write the finished model where it belongs."""


@dataclass
class Update:
    """Backward, clip, step: called by a stage once for each of its networks."""

    accelerator: Accelerator
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    clip_norm: float
    skipped: int = 0

    def __call__(self, name: str, loss: Tensor) -> Tensor:
        """Returns the gradient's norm before clipping; a step that is not finite is skipped and counted."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.networks[name].parameters(), self.clip_norm)
        finite = math.isfinite(float(norm))
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips by itself, and lowers its scale
            optimizer.step()
        self.skipped += not finite
        return norm


def autocast_dtype(setting: str, device: torch.device) -> str:
    """Accelerate's name of the precision: "auto" is bf16 where the device computes it natively, else "no"."""
    if setting != "auto":
        return "no" if setting == "float32" else setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if _cpu_is_faster_in_bf16() else "no"
    return "no"


def _cpu_is_faster_in_bf16() -> bool:
    """Whether matrix products run faster in bfloat16 than in float32: with AMX, or AVX-512 BF16 on AMD.

    Intel's AVX-512 BF16 without AMX halves their speed (170 against 300 GFLOP/s measured on two cores), AMD's makes
    them four times as fast.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.is_file() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    return amd and torch.cpu._is_avx512_bf16_supported()


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's view of the machine: device, processes, precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = autocast_dtype(mixed_precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise SettingError("mixed_precision=fp16 needs a GPU: use bf16, float32 or auto here.")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # Accelerate allows one precision per process; two runs may want two
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        raise SettingError(
            f"bld trains on one process so far, and was started on {accelerator.num_processes}: start it by itself."
        )
    return accelerator


class StopSignals:
    """While open, SIGINT and SIGTERM ask for a stop after the running step; a second one quits at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.requested = True
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)


class StageRun:
    """A stage on its way: model, average, optimizers, clock and log."""

    def __init__(self, stage: Stage, run: RunFolder, accelerator: Accelerator, budget_seconds: float | None, say: Say):
        self.stage, self.run, self.accelerator, self.say = stage, run, accelerator, say
        self.budgeted = budget_seconds is not None
        settings = stage.training
        self.networks = stage.networks()
        self.average = WeightAverage(stage.model, settings.ema_decay)
        self.optimizers: dict[str, Optimizer] = {
            name: accelerator.prepare_optimizer(  # which knows about fp16's loss scale
                AdamW(
                    network.parameters(),
                    lr=settings.learning_rate,
                    betas=(settings.beta1, settings.beta2),
                    weight_decay=settings.weight_decay,
                    fused=True,
                )
            )
            for name, network in self.networks.items()
        }
        self.store = run.checkpoints(stage.name)
        self.step, spent = self._resume()
        self.clock = StageClock(settings.steps, budget_seconds, spent)
        self.update = Update(accelerator, self.networks, self.optimizers, settings.clip_norm)

    # -- state --------------------------------------------------------------------------------------------

    def _resume(self) -> tuple[int, float]:
        state = self.store.latest(self.say)
        if state is None:
            self.run.forget_metrics_after(self.stage.name, -1)
            return 0, 0.0
        for name, network in self._saved_networks().items():
            prefix = f"{name}/"
            saved = {key[len(prefix) :]: t for key, t in state.tensors.items() if key.startswith(prefix)}
            try:
                network.load_state_dict(saved)
            except RuntimeError as error:
                raise CheckpointError(
                    f"The checkpoints in {self.store.folder} hold another {name} (other settings, or other classes in "
                    "the data): choose another --out, or delete them to begin this stage anew."
                ) from error
        for name, optimizer in self.optimizers.items():
            unpack_optimizer(f"optimizer/{name}", optimizer, state.tensors)
        self.run.forget_metrics_after(self.stage.name, state.step)
        self.say(f"The {self.stage.name} goes on from step {state.step:,}.")
        return state.step, float(state.numbers["seconds"])

    def _saved_networks(self) -> dict[str, nn.Module]:
        return {**self.networks, "average": self.average.model}

    def checkpoint(self) -> None:
        """Save everything the stage needs to go on."""
        tensors = {
            f"{name}/{key}": tensor
            for name, network in self._saved_networks().items()
            for key, tensor in network.state_dict().items()
        }
        for name, optimizer in self.optimizers.items():
            tensors |= pack_optimizer(f"optimizer/{name}", optimizer)
        self.store.save(TrainingState(self.step, tensors, {"seconds": self.clock.elapsed()}))

    # -- the loop -----------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end of the steps or of the budget, then save the averaged model."""
        log = MetricsLog(self.run, self.stage.name, self.say)
        try:
            first_step, started = self.step, time.monotonic()
            self._loop(log)
            self._finish(log, self.step - first_step, time.monotonic() - started)
        finally:
            log.close()

    def _loop(self, log: MetricsLog) -> None:
        settings = self.stage.training
        batches = self.stage.batches(self.step)
        saved, bad_in_a_row = time.monotonic(), 0
        previews = int(self.clock.progress(self.step) * settings.previews)
        with _progress_bar(self.stage.name, self.clock.progress(self.step)) as bar, StopSignals() as stop:
            while (progress := self.clock.progress(self.step)) < 1:
                if stop.requested or time.monotonic() - saved > settings.checkpoint_seconds:
                    self.checkpoint()
                    saved = time.monotonic()
                if stop.requested:
                    raise KeyboardInterrupt
                if int(progress * settings.previews) > previews:
                    previews = int(progress * settings.previews)
                    self._look(log)

                # ---- one step ----
                rate = learning_rate(self.step, progress, settings, self.budgeted)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                skipped = self.update.skipped
                values = self.stage.train_step(next(batches), self.step, progress, self.update)
                self.step += 1
                self.average.update(self.stage.model, self.step)
                # ------------------

                bad_in_a_row = bad_in_a_row + 1 if self.update.skipped > skipped else 0
                if bad_in_a_row >= MOST_BAD_STEPS_IN_A_ROW:
                    self._stop_diverged(bad_in_a_row)
                if self.step % settings.log_every_steps == 0:
                    numbers = {name: float(value) for name, value in values.items()}
                    log.write(self.step, self.clock.elapsed(), {**numbers, "learning_rate": rate})
                    bar.set_postfix_str(f"step {self.step:,}, loss {numbers['loss']:.4f}")
                bar.update(100 * progress - bar.n)
            bar.update(100 - bar.n)

    def _look(self, log: MetricsLog) -> None:
        figures = self.stage.measure(self.average.model)
        log.write(self.step, self.clock.elapsed(), figures)
        self.stage.preview(self.average.model, self.run.samples / f"{self.stage.name}-{self.step:07d}.png")
        self.say(f"{self.stage.name}, step {self.step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def _finish(self, log: MetricsLog, steps: int, seconds: float) -> None:
        self._look(log)
        self.checkpoint()
        self.stage.save(self.average.model)
        rate = steps * self.stage.training.batch_size / max(seconds, 1e-9)
        earlier = self.run.progress().get(self.stage.name, {})
        self.run.record(
            self.stage.name,
            steps=self.step,
            seconds=round(self.clock.elapsed(), 1),
            images_per_second=round(rate, 1) if steps else earlier.get("images_per_second"),
            skipped_steps=self.update.skipped,
            parameters=sum(p.numel() for p in self.stage.model.parameters()),
        )

    def _stop_diverged(self, times: int) -> None:
        raise DivergedError(
            f"The {self.stage.name}'s gradients were not finite {times} times in a row, up to step {self.step:,}: "
            f"lower {self.stage.name}_training.learning_rate, or set mixed_precision=float32; "
            "the last checkpoint is intact."
        )


def _progress_bar(name: str, progress: float) -> tqdm:
    return tqdm(
        total=100,
        initial=100 * progress,
        desc=name,
        mininterval=0.5,
        dynamic_ncols=True,
        disable=None,  # silent where the output is not a terminal
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} spent, {remaining} left, {postfix}",
    )
