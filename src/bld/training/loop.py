"""One loop for every stage: resume, train, and once in a while log, measure, preview and save."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from bld.errors import CheckpointError, UserError
from bld.nn.activation_checkpointing import recompute_activations
from bld.pipeline.recorded import held_out_of
from bld.runtime.distributed import whole_state
from bld.training.accelerator import (
    compile_network,
    precision_of,
    prepared,
    processes_of,
)
from bld.training.ahead import ahead
from bld.training.checkpoints import TrainingState, pack_optimizer, unpack_optimizer
from bld.training.ema import WeightAverage
from bld.training.late_numbers import LateNumbers
from bld.training.learning_rate import StageClock, learning_rate
from bld.training.metrics_log import MetricsLog
from bld.training.optimizer import make_optimizer
from bld.training.order import part_of
from bld.training.run_folder import RunFolder
from bld.training.stages.base import Stage, Update
from bld.training.stop_signals import StopSignals

MOST_BAD_IN_A_ROW = 20
STEPS_UNHEARD = 10  # between two looks at what the device has skipped

Say = Callable[[str], None]


class DivergedError(UserError):
    """Gradients were not finite too many times in a row."""


class Unread(NamedTuple):
    """What a step found, which is read a step later: then the device has it, and nobody waits.

    Attributes:
        step: which one.
        seconds: spent on the stage until then.
        rate: its learning rate.
        names: of what it logs, means over the global batch.
        numbers: these, the gradient's norm before clipping, and gradients in a row that were not finite.
    """

    step: int
    seconds: float
    rate: float
    names: list[str]
    numbers: LateNumbers


class StageRun:
    """A stage while it is trained: model, average, optimizers and clock, resumed from the newest checkpoint.

    Args:
        stage: to train.
        run: whose folder holds checkpoints, metrics and models.
        accelerator: precision and processes.
        budget_seconds: time for the stage; None is without a budget.
        say: called with each message for users.
        is_known: whether the model begins with weights worth measuring before the first step.

    Raises:
        CheckpointError: if the checkpoints are those of another network.
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
        self.early: nn.Module | None = None  # the average as it was at the stage's milestone, and at which step
        self.early_step = 0
        state = self._load_networks()  # before they are wrapped, so that whole tensors fit
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        for name, network in self.plain.items():
            if stage.settings.compile:
                compile_network(network)
            self.networks[name] = prepared(accelerator, network, stage.settings.parallel)
            # Prepared, it knows about fp16's loss scale.
            self.optimizers[name] = accelerator.prepare_optimizer(make_optimizer(network, settings))
        stage.prepared = self.networks
        self.average.follow(self.networks[stage.name])
        skipped = {name: torch.zeros(2, dtype=torch.int64, device=accelerator.device) for name in self.networks}
        self.update = Update(accelerator, self.networks, self.optimizers, settings.clip_norm, skipped)
        self.step, self.images, spent, self.looked = 0, 0, 0.0, -1
        self.trained_with: list[dict[str, float]] = []  # batch size and learning rate, each that had a step, in order
        if state is not None:
            for name, optimizer in self.optimizers.items():
                unpack_optimizer(f"optimizer/{name}", optimizer, state.tensors)
            self.step, spent = state.step, float(state.numbers["seconds"])
            self.images = int(state.numbers.get("images", self.step * settings.batch_size))
            self.looked = int(state.numbers.get("looked", -1))
            self.trained_with = list(state.numbers.get("trained_with", []))
            self.update.skipped[stage.name][0] = int(state.numbers.get("skipped", 0))
        if accelerator.scaler is not None:  # which the stage before may have used
            fresh = torch.amp.GradScaler("cpu").state_dict()
            saved = None if state is None else state.numbers.get("loss_scale")
            accelerator.scaler.load_state_dict(saved or fresh)
        if self.processes.is_main:
            run.forget_metrics_after(stage.name, self.step if state is not None else -1)
        self.clock = StageClock(settings.steps, budget_seconds, spent)
        if state is not None:
            done = self.clock.done(stage.name, self.step) if self._is_recorded() else None
            self.say(done or f"The {stage.name} goes on from step {self.step:,}.")

    # -- state --------------------------------------------------------------------------------------------

    def _load_networks(self) -> TrainingState | None:
        state = self.store.latest(self.say)
        if state is None:
            return None
        networks = {**self.plain, "average": self.average.model}
        if "early_step" in state.numbers:
            self.early, self.early_step = copy.deepcopy(self.average.model).cpu(), int(state.numbers["early_step"])
            networks["early"] = self.early
        for name, network in networks.items():
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
        numbers: dict[str, Any] = {"seconds": self.clock.elapsed(), "images": self.images, "looked": self.looked}
        numbers["skipped"] = self.update.skips()[0]
        numbers["trained_with"] = self.trained_with
        if self.accelerator.scaler is not None:
            numbers["loss_scale"] = self.accelerator.scaler.state_dict()
        if self.early is not None:
            tensors |= {f"early/{key}": tensor for key, tensor in self.early.state_dict().items()}
            numbers["early_step"] = self.early_step
        if self.processes.is_main:
            log.sync()  # its lines up to here will not be written again
            self.store.save(TrainingState(self.step, tensors, numbers))

    # -- the loop -----------------------------------------------------------------------------------------

    @torch.enable_grad()  # whoever calls: what measures without gradients may train what is missing
    def train(self) -> bool:
        """Train to the end of the steps or of the budget, then save the averaged model.

        Returns:
            Whether anything came of it; where there was nothing left to do, all stays as it was.

        Raises:
            DivergedError: if gradients were not finite too many times in a row; the state is saved.
            KeyboardInterrupt: after the running step, if a signal asked for a stop; the state is saved.
        """
        log = MetricsLog(self.run, self.stage.name, self.stage.settings, self.say, self.step, self.processes.is_main)
        try:
            first_step, first = self.step, (self.step, self.looked, self.early_step)
            self._loop(log)
            trained, rate = self.step > first_step, self.images / max(self.clock.elapsed(), 1e-9)
            if self.looked != self.step:
                self._evaluate(log)
            is_new = first != (self.step, self.looked, self.early_step)
            if is_new:
                self.checkpoint(log)
            if not is_new and self._is_recorded():
                return False
            self._finish(trained, rate)
            return True
        finally:
            log.close()

    def _loop(self, log: MetricsLog) -> None:
        settings = self.stage.training
        batches = ahead(self.stage.batches(self.step, self.images), self.accelerator.device)
        saved = time.monotonic()
        # By the main process's clock too: others that expect another preview would wait for ever.
        previews = int(self._agree(self.clock.progress(self.step), False, False)[0] * settings.previews)
        unread: Unread | None = None
        used = {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
        if self.is_known and self.step == 0:
            self._evaluate(log)
        bar_shown = _progress_bar(self.stage.name, self.clock.progress(self.step), self.processes.is_main)
        with closing(batches), bar_shown as bar, StopSignals() as stop:
            while True:
                save_due = time.monotonic() - saved > settings.checkpoint_seconds
                progress, stopping, save_due = self._agree(self.clock.progress(self.step), stop.requested, save_due)
                preview_due = int(progress * settings.previews) > previews
                if unread is not None and (progress >= 1 or preview_due or stopping or save_due):
                    self._read(unread, log, bar)
                    unread = None
                if self.early is None and 0 < self.stage.milestone <= progress:
                    self.early, self.early_step = copy.deepcopy(self.average.gathered()).cpu(), self.step
                if progress >= 1:
                    break
                if preview_due:
                    previews = int(progress * settings.previews)
                    if self.looked != self.step:
                        self._evaluate(log)
                if stopping or save_due:  # after evaluating, so that a checkpoint's step has been evaluated
                    self.checkpoint(log)
                    saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt

                # ---- one step ----
                rate = learning_rate(self.step, progress, settings, self.budgeted)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                if self.trained_with[-1:] != [used]:
                    self.trained_with.append(used)
                values = self._train_step(batches, progress)
                self.step += 1
                self.images += settings.batch_size
                self.average.update(self.step)
                # ------------------

                if unread is not None:
                    self._read(unread, log, bar)
                    unread = None
                if self.step % STEPS_UNHEARD == 0 or self.step % settings.log_every_steps == 0:
                    unread = self._unread(values, rate)
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
        self.update.finish()
        return values

    def _unread(self, values: dict[str, Tensor], rate: float) -> Unread:
        """What the step before found; of several processes, all ask at the same steps."""
        joined = torch.stack([value.float() for value in values.values()])
        if self.processes.count > 1:
            joined = self.accelerator.reduce(joined)
        norm, in_a_row = self.update.norms[self.stage.name], self.update.in_a_row()
        numbers = torch.cat([joined, torch.stack([norm.float(), in_a_row.float()])])
        return Unread(self.step, self.clock.elapsed(), rate, list(values), LateNumbers(numbers))

    def _read(self, unread: Unread, log: MetricsLog, bar: tqdm) -> None:
        """Log what a step found, and stop the training that it shows to have diverged."""
        *means, norm, in_a_row = unread.numbers.read().tolist()
        if unread.step % self.stage.training.log_every_steps == 0:
            numbers = dict(zip(unread.names, means, strict=True))
            logged = {**numbers, "gradient_norm": norm, "learning_rate": unread.rate}
            log.write(unread.step, unread.seconds, logged)
            bar.set_postfix_str(f"step {unread.step:,}, loss {numbers['loss']:.4f}")
        if in_a_row >= MOST_BAD_IN_A_ROW:
            self.checkpoint(log)
            self._stop_diverged(int(in_a_row))

    def _agree(self, progress: float, stopping: bool, late: bool) -> tuple[float, bool, bool]:
        """The main process's clock, and whether any process was asked to stop: all act on the same."""
        if self.processes.count == 1:
            return progress, stopping, late
        mine = [progress, late] if self.processes.is_main else [0.0, 0.0]
        told = torch.tensor([*mine, stopping], dtype=torch.float64, device=self.accelerator.device)
        progress, was_late, asked = self.accelerator.reduce(told).tolist()
        return progress, asked > 0, was_late > 0

    def _evaluate(self, log: MetricsLog) -> None:
        averaged = self.average.gathered()
        self.looked = self.step
        if not self.processes.is_main:
            return
        metrics = self.stage.measure(averaged)
        log.write(self.step, self.clock.elapsed(), metrics)
        picture = self.run.samples / f"{self.stage.name}-{self.step:07d}.png"
        self.stage.preview(averaged, picture)
        log.picture(self.step, picture)
        self.say(f"{self.stage.name}, step {self.step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def _is_recorded(self) -> bool:
        """Whether the model of this step was saved, after which it is recorded: a command may be killed before."""
        recorded = self.run.progress().get(self.stage.name, {}).get("steps") == self.step
        is_saved = recorded and (self.run.path / self.stage.name).is_dir()
        self.processes.wait()  # all have looked before anyone writes
        return is_saved

    def _finish(self, trained: bool, rate: float) -> None:
        averaged = self.average.gathered()
        if not self.processes.is_main:
            return
        self.stage.save(averaged, self.early)
        earlier = self.run.progress().get(self.stage.name, {})
        self.run.record(
            self.stage.name,
            steps=self.step,
            seconds=round(self.clock.elapsed() if trained else self.clock.seconds, 1),
            images_per_second=round(rate, 1) if trained else earlier.get("images_per_second"),
            precision=precision_of(self.accelerator) if trained else earlier.get("precision"),
            images=self.images,
            trained_with=self.trained_with,
            skipped_steps=self.update.skips()[0],
            held_out=self._measured(),
            parameters=sum(p.numel() for p in self.average.model.parameters()),
            early_step=None if self.early is None else self.early_step,
        )

    def _measured(self) -> dict[str, float]:
        """What was measured of this step on held-out images, by this command or the one that it goes on from."""
        found: dict[str, float] = {}
        for line in self.run.read_metrics():
            if (line["stage"], line["step"]) == (self.stage.name, self.step):
                found |= held_out_of(line)
        return found

    def _stop_diverged(self, times: int) -> None:
        raise DivergedError(
            f"The {self.stage.name}'s gradients were not finite {times} times in a row, up to step {self.step:,}: "
            f"lower {self.stage.name}_training.learning_rate, or set mixed_precision=float32, and repeat the command: "
            "the state before them is saved."
        )


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
