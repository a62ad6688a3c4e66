"""One loop for every stage: resume, train, and once in a while log, look and save."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from tqdm import tqdm

from bld.errors import CheckpointError, SettingError, UserError
from bld.nn.activation_checkpointing import recompute_activations
from bld.runtime.distributed import PATIENCE, Processes, whole, whole_state
from bld.runtime.precision import allow_tf32
from bld.training.checkpoints import TrainingState, pack_optimizer, unpack_optimizer
from bld.training.ema import WeightAverage
from bld.training.init_from import Origin
from bld.training.learning_rate import StageClock, learning_rate
from bld.training.metrics_log import MetricsLog
from bld.training.order import part_of
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings, TrainingSettings

MOST_BAD_STEPS_IN_A_ROW = 20
ONE_SIGNAL_SECONDS = 0.5  # a launcher passes on what the terminal or scheduler has sent to everyone already

Say = Callable[[str], None]


class DivergedError(UserError):
    """Losses or gradients were not finite too many times in a row."""


class Stage(ABC):
    """What the loop needs of a stage; `model` is what is averaged, saved and used.

    prepared: the networks as they are trained, wrapped for data parallelism where there are several processes; the
    loop sets it, and a training pass goes through these.  recomputed: what activation checkpointing computes twice.
    """

    name: str
    model: nn.Module
    settings: Settings
    training: TrainingSettings
    accelerator: Accelerator
    prepared: dict[str, nn.Module]
    recomputed: tuple[type[nn.Module], ...] = ()

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks with an optimizer of their own, by name; the model's is the stage's name."""

    @abstractmethod
    def begin_from(self, origin: Origin) -> str:
        """Take over the weights of another model, where they fit; returns what was kept, in a sentence."""

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[Any]:
        """This process's share of the batch of each step, from the given one on, a micro-batch at a time."""

    @abstractmethod
    def train_step(self, batch: Any, step: int, progress: float, update: Update) -> dict[str, Tensor]:
        """One micro-batch: losses, and `update(name, loss)` for each network.  Returns what to log, batch means."""

    @abstractmethod
    def measure(self, averaged: nn.Module) -> dict[str, float]:
        """Figures on held-out images, to log."""

    @abstractmethod
    def preview(self, averaged: nn.Module, path: Path) -> None:
        """Write a picture of the present state."""

    @abstractmethod
    def save(self, averaged: nn.Module) -> None:
        """Write the finished model where it belongs."""

    def parts(self) -> list[tuple[int, int]]:
        """(index, number of parts) of this process's micro-batches: the global batch is cut into as many parts."""
        each = self.training.accumulate
        first = self.accelerator.process_index * each
        return [(first + i, self.accelerator.num_processes * each) for i in range(each)]


@dataclass
class Update:
    """Backward, and after a step's last micro-batch clip and step: called by a stage once for each of its networks.

    weight: what a micro-batch's mean counts in the mean over the global batch, times the number of processes, over
    which data parallelism averages.  No gradient outlives its step: it would take memory through the next forward.
    """

    accelerator: Accelerator
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    clip_norm: float
    skipped: int = 0
    weight: float = 1.0
    is_last: bool = True
    norms: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, loss: Tensor) -> None:
        """Add the loss's gradient; at the end of the step, one that is not finite is skipped and counted."""
        optimizer = self.optimizers[name]
        self.accelerator.backward(loss if self.weight == 1 else loss * self.weight)
        if not self.is_last:
            return
        norm = whole(self.accelerator.clip_grad_norm_(self.networks[name].parameters(), self.clip_norm or math.inf))
        finite = math.isfinite(float(norm))
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips by itself, and lowers its scale
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.skipped += not finite
        self.norms[name] = norm


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
    allow_tf32(device, precision != "no")
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[patient])


def precision_of(accelerator: Accelerator) -> str:
    """What its `mixed_precision` came to: float32, bf16 or fp16."""
    return "float32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)


class StopSignals:
    """While open, SIGINT and SIGTERM ask for a stop after the running step; a second one quits at once.

    What follows within half a second is the same request: launchers repeat to their processes what everyone was sent.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._asked_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.requested and time.monotonic() - self._asked_at > ONE_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.requested:
            self.requested, self._asked_at = True, time.monotonic()


class StageRun:
    """A stage on its way: model, average, optimizers, clock and log.

    is_known: whether the model begins with weights worth measuring before the first step.
    """

    def __init__(
        self,
        stage: Stage,
        run: RunFolder,
        accelerator: Accelerator,
        budget_seconds: float | None,
        say: Say,
        is_known: bool = False,
    ):
        self.stage, self.run, self.accelerator, self.say = stage, run, accelerator, say
        self.processes = processes_of(accelerator)
        self.budgeted, self.is_known = budget_seconds is not None, is_known
        settings = stage.training
        self.plain = stage.networks()
        self.average = WeightAverage(stage.model, settings.ema_decay)
        if settings.activation_checkpointing:
            for network in self.plain.values():
                recompute_activations(network, stage.recomputed)
        self.store = run.checkpoints(stage.name)
        state = self._load_networks()  # before they are wrapped, so that whole tensors fit
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        optimizer: Optimizer
        for name, network in self.plain.items():
            if stage.settings.compile:
                compile_network(network)
            self.networks[name] = _prepared(accelerator, network, stage.settings.parallel)
            optimizer = AdamW(
                network.parameters(),
                lr=settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
                fused=True,
            )
            self.optimizers[name] = accelerator.prepare_optimizer(optimizer)  # which knows about fp16's loss scale
        stage.prepared = self.networks
        self.average.follow(self.networks[stage.name])
        self.update = Update(accelerator, self.networks, self.optimizers, settings.clip_norm)
        self.step, spent, self.looked = 0, 0.0, -1
        if state is not None:
            for name, optimizer in self.optimizers.items():
                unpack_optimizer(f"optimizer/{name}", optimizer, state.tensors)
            self.step, spent = state.step, float(state.numbers["seconds"])
            self.looked = int(state.numbers.get("looked", -1))
            self.update.skipped = int(state.numbers.get("skipped", 0))
            self.say(f"The {stage.name} goes on from step {self.step:,}.")
        if self.processes.is_main:
            run.forget_metrics_after(stage.name, self.step if state is not None else -1)
        self.clock = StageClock(settings.steps, budget_seconds, spent)

    # -- state --------------------------------------------------------------------------------------------

    def _load_networks(self) -> TrainingState | None:
        state = self.store.latest(self.say)
        if state is None:
            return None
        for name, network in {**self.plain, "average": self.average.model}.items():
            prefix = f"{name}/"
            saved = {key[len(prefix) :]: t for key, t in state.tensors.items() if key.startswith(prefix)}
            try:
                network.load_state_dict(saved)
            except RuntimeError as error:
                raise CheckpointError(
                    f"The checkpoints in {self.store.folder} hold another {name} (other settings, or other classes in "
                    "the data): choose another --out, or delete them to begin this stage anew."
                ) from error
        return state

    def checkpoint(self, log: MetricsLog) -> None:
        """Save everything the stage needs to go on."""
        if not (self.processes.is_main or self.average.is_spread):
            return
        tensors = {
            f"{name}/{key}": tensor
            for name, network in {**self.plain, "average": self.average.gathered()}.items()
            for key, tensor in whole_state(network).items()
        }
        for name, optimizer in self.optimizers.items():
            tensors |= pack_optimizer(f"optimizer/{name}", optimizer)
        numbers = {"seconds": self.clock.elapsed(), "looked": self.looked, "skipped": self.update.skipped}
        if self.processes.is_main:
            log.sync()  # its lines up to here will not be written again
            self.store.save(TrainingState(self.step, tensors, numbers))

    # -- the loop -----------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end of the steps or of the budget, then save the averaged model."""
        log = MetricsLog(self.run, self.stage.name, self.stage.settings, self.say, self.step, self.processes.is_main)
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
        if self.is_known and self.step == 0:
            self._look(log)
        bar_shown = _progress_bar(self.stage.name, self.clock.progress(self.step), self.processes.is_main)
        with bar_shown as bar, StopSignals() as stop:
            while True:
                late = time.monotonic() - saved > settings.checkpoint_seconds
                progress, stopping, late = self._agree(self.clock.progress(self.step), stop.requested, late)
                if progress >= 1:
                    break
                if int(progress * settings.previews) > previews:
                    previews = int(progress * settings.previews)
                    if self.looked != self.step:
                        self._look(log)
                if stopping or late:  # after the look, so that a checkpoint's step has been looked at
                    self.checkpoint(log)
                    saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt

                # ---- one step ----
                rate = learning_rate(self.step, progress, settings, self.budgeted)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                skipped = self.update.skipped
                values = self._train_step(batches, progress)
                self.step += 1
                self.average.update(self.step)
                # ------------------

                bad_in_a_row = bad_in_a_row + 1 if self.update.skipped > skipped else 0
                if bad_in_a_row >= MOST_BAD_STEPS_IN_A_ROW:
                    self.checkpoint(log)
                    self._stop_diverged(bad_in_a_row)
                if self.step % settings.log_every_steps == 0:
                    numbers = self._means(values)
                    log.write(self.step, self.clock.elapsed(), {**numbers, "learning_rate": rate})
                    bar.set_postfix_str(f"step {self.step:,}, loss {numbers['loss']:.4f}")
                bar.update(100 * progress - bar.n)
            bar.update(100 - bar.n)

    def _train_step(self, batches: Iterator[Any], progress: float) -> dict[str, Tensor]:
        """All micro-batches of a step; returns this process's part of the means over the global batch."""
        values: dict[str, Tensor] = {}
        parts, batch_size = self.stage.parts(), self.stage.training.batch_size
        for part in parts:
            start, stop = part_of(batch_size, *part)
            share = (stop - start) / batch_size
            self.update.weight = share * self.processes.count
            self.update.is_last = part == parts[-1]
            with ExitStack() as unsynchronised:
                for network in self.networks.values() if not self.update.is_last else ():
                    unsynchronised.enter_context(self.accelerator.no_sync(network))
                found = self.stage.train_step(next(batches), self.step, progress, self.update)
            for name, value in found.items():
                values[name] = value * share + values.get(name, 0)
        return values

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """What a step logs: means over the global batch, and the gradient's norm before clipping."""
        joined = torch.stack([value.float() for value in values.values()])
        if self.processes.count > 1:
            joined = self.accelerator.reduce(joined)
        numbers = dict(zip(values, joined.tolist(), strict=True))
        return {**numbers, "gradient_norm": float(self.update.norms[self.stage.name])}

    def _agree(self, progress: float, stopping: bool, late: bool) -> tuple[float, bool, bool]:
        """The main process's clock, and whether any process was asked to stop: all act on the same."""
        if self.processes.count == 1:
            return progress, stopping, late
        mine = [progress, late] if self.processes.is_main else [0.0, 0.0]
        told = torch.tensor([*mine, stopping], dtype=torch.float64, device=self.accelerator.device)
        progress, was_late, asked = self.accelerator.reduce(told).tolist()
        return progress, asked > 0, was_late > 0

    def _look(self, log: MetricsLog) -> None:
        averaged = self.average.gathered()
        self.looked = self.step
        if not self.processes.is_main:
            return
        figures = self.stage.measure(averaged)
        log.write(self.step, self.clock.elapsed(), figures)
        picture = self.run.samples / f"{self.stage.name}-{self.step:07d}.png"
        self.stage.preview(averaged, picture)
        log.picture(self.step, picture)
        self.say(f"{self.stage.name}, step {self.step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def _finish(self, log: MetricsLog, steps: int, seconds: float) -> None:
        if self.looked != self.step:
            self._look(log)
        self.checkpoint(log)
        averaged = self.average.gathered()
        if not self.processes.is_main:
            return
        self.stage.save(averaged)
        rate = steps * self.stage.training.batch_size / max(seconds, 1e-9)
        earlier = self.run.progress().get(self.stage.name, {})
        self.run.record(
            self.stage.name,
            steps=self.step,
            seconds=round(self.clock.elapsed(), 1),
            images_per_second=round(rate, 1) if steps else earlier.get("images_per_second"),
            precision=precision_of(self.accelerator) if steps else earlier.get("precision"),
            skipped_steps=self.update.skipped,
            parameters=sum(p.numel() for p in self.average.model.parameters()),
        )

    def _stop_diverged(self, times: int) -> None:
        raise DivergedError(
            f"The {self.stage.name}'s gradients were not finite {times} times in a row, up to step {self.step:,}: "
            f"lower {self.stage.name}_training.learning_rate, or set mixed_precision=float32, and repeat the command: "
            "the state before them is saved."
        )


def compile_network(network: nn.Module) -> None:
    """Run torch.compile's version of the network from now on; a transformer's blocks are alike, and compiled once."""
    functorch.donated_buffer = False  # the adaptive adversarial weight walks through a graph twice
    for part in getattr(network, "blocks", [network]):
        part.compile(dynamic=False)


def _prepared(accelerator: Accelerator, network: nn.Module, parallel: str) -> nn.Module:
    """The network as several processes train it: each holds all of it, or with "fsdp" a piece."""
    if accelerator.num_processes == 1:
        return network
    if parallel == "fsdp" or accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.fsdp import fully_shard

        for block in getattr(network, "blocks", ()):  # a transformer's are gathered one at a time
            fully_shard(block)
        fully_shard(network)
        return network
    # A 1×1 convolution's gradient may lie in memory in either of two orders, which costs nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return accelerator.prepare_model(network)


def processes_of(accelerator: Accelerator) -> Processes:
    """The processes that train together."""
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


def _progress_bar(name: str, progress: float, shown: bool) -> tqdm:
    return tqdm(
        total=100,
        initial=100 * progress,
        desc=name,
        mininterval=0.5,
        dynamic_ncols=True,
        disable=None if shown else True,  # silent where the output is not a terminal
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} spent, {remaining} left, {postfix}",
    )
