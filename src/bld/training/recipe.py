"""The stages in their order: images → tokenizer → code cache → prior; each is skipped once it is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from bld.data import ImageSet, read_captions
from bld.errors import SettingError
from bld.io.files import read_json, write_json
from bld.serialization.models import load_index, load_prior_config, load_process, load_tokenizer, tokenizer_hash
from bld.tokenizer import BinaryAutoencoder
from bld.training.accelerator import make_accelerator, precision_of, processes_of
from bld.training.code_cache import CodeCache
from bld.training.condition_cache import ImageVectors, VectorCache, condition_vectors
from bld.training.held_out_codes import draws_of, held_out_codes, held_out_entropy
from bld.training.init_from import given_tokenizer, init_source
from bld.training.loop import StageRun
from bld.training.metrics_log import refuse_missing_trackers
from bld.training.order import spread
from bld.training.origins import seen_before
from bld.training.refusals import refuse_guidance, refuse_small_batches, refuse_too_few
from bld.training.run_folder import RunFolder
from bld.training.run_images import images_of_run, keep_examples
from bld.training.settings import Settings, TrainingSettings
from bld.training.stages.base import Stage
from bld.training.stages.encode import encode_images
from bld.training.stages.prior import HeldOutCodes, PriorStage, named_encoder, sampling_defaults
from bld.training.stages.tokenizer import MOST_MEASURED, TokenizerStage
from bld.training.time_budget import STAGES, split

Say = Callable[[str], None]


@dataclass
class Recipe:
    """The training of a run: tokenizer, code cache, prior. Repeating a call resumes where the last one stopped.

        run = RunFolder("runs/flowers")
        Recipe(run.adopt("emoji64", [], "my-photos"), run, say=print).train()

    Args:
        settings: of the run, as `RunFolder.adopt` returns them.
        run: the folder everything is written to.
        say: called with each message for the user, in the main process only; `print` will do.
        budget_seconds: time for the whole run, which `train` shares between the stages; None trains all steps.
        stages: those that are to be trained: of these alone it is asked whether there are images enough for a batch.

    Raises:
        SettingError: if a batch is too small to be split between the processes.
        MissingPackageError: if a tracker in the settings is not installed.
    """

    settings: Settings
    run: RunFolder
    say: Say
    budget_seconds: float | None = None
    stages: Sequence[str] = STAGES

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._seconds_in_stages = 0.0
        self._is_shared = False  # whether the stages share the budget
        self._images: tuple[ImageSet, ImageSet] | None = None
        self._vectors: VectorCache | None = None
        self.accelerator = make_accelerator(self.settings.mixed_precision)
        self.processes = processes_of(self.accelerator)
        if not self.processes.is_main:
            self.say = lambda _: None
        refuse_small_batches(self.settings, self.processes.count, self._trained())
        refuse_missing_trackers(self.settings)

    # -- images -------------------------------------------------------------------------------------------

    def images(self) -> tuple[ImageSet, ImageSet]:
        """The images (train, held out), opened and verified once.

        Raises:
            DataError: if they cannot be used, are fewer than a batch, or are not those that the run was trained on.
            SettingError: for guidance without classes, texts or vectors, or that the prior is not trained for.
        """
        if self._images is None:
            data = self.settings.data
            with self.processes.main_first():  # which leaves what it learns of the images in the run's folder
                everything = ImageSet.open(
                    data.location,
                    self.settings.preprocessing(),
                    report_to=self.run.path if self.processes.is_main else None,
                    memory_limit_bytes=int(data.memory_limit_gb * 2**30),
                    progress=self.processes.is_main,
                    threads=max(2, os.cpu_count() or 1),
                    labels=data.labels,
                    verify=data.verify,
                    index_to=self.run.path,
                    max_pixels=data.max_pixels,
                )
                refuse_guidance(self.settings, everything.classes, self.say)
                notes = everything.source.notes
                train, rest, remarks = images_of_run(self.run, self.settings, everything, self.processes.is_main)
            seen = seen_before(self.run, rest)
            if self.processes.is_main:
                self.run.record("data", held_out_are_unseen=not seen)
            for note in [*notes, *remarks, *seen]:
                self.say(note)
            if everything.skipped:
                self.say(
                    f"{len(everything.skipped)} unreadable images are left out; "
                    f"{self.run.path / 'skipped_images.txt'} names them."
                )
            refuse_too_few(self.settings, train, self._trained())
            if self.processes.is_main:
                keep_examples(self.run, rest, self.settings.seed)
            classes = f", {len(train.classes)} classes" if train.classes else ""
            self.say(f"{len(train):,} images to train on, {len(rest):,} held out{classes}.")
            self._images = train, rest
        return self._images

    def _trained(self) -> list[str]:
        """The stages that this run may train."""
        return [name for name in STAGES if name in self.stages and (name == "prior" or not given_tokenizer(self.run))]

    # -- stages -------------------------------------------------------------------------------------------

    def train_tokenizer(self, budget_seconds: float | None = None) -> BinaryAutoencoder:
        """Train the tokenizer, the first stage.

        Args:
            budget_seconds: time for this stage; None trains all steps.

        Returns:
            The averaged tokenizer from RUN/tokenizer.

        Raises:
            SettingError: if the run uses a given tokenizer as it is.
        """
        given = given_tokenizer(self.run)
        if given is not None:
            raise SettingError(
                f"{self.run.path} uses the tokenizer of {given} as it is, and its prior knows those codes: to train it "
                f"on, begin another run with bld train-tokenizer --init-from {given}."
            )
        with self.locked():
            if not self._finished("tokenizer"):
                train, held_out = self.images()
                if self.settings.objective.perceptual == 0:
                    self.say("The perceptual term is switched off (objective.perceptual=0): no LPIPS in the objective.")
                self._run(TokenizerStage(self.settings, train, held_out, self.accelerator, self.run), budget_seconds)
        return load_tokenizer(self.run.tokenizer).to(self.accelerator.device)

    def encode(self) -> CodeCache:
        """Encode the training images, between the two stages; returns their code cache."""
        tokenizer, train = self._trained_tokenizer(), self.images()[0]
        started = time.monotonic()
        with self.locked():
            cache, encoded = encode_images(
                self.run.codes,
                tokenizer,
                train,
                draws=self.settings.codes.draws,
                fresh=self.settings.codes.fresh,
                seed=self.settings.seed,
                workers=self.settings.data.workers,
                accelerator=self.accelerator,
                say=self.say,
            )
        if encoded and self.processes.is_main:
            seconds = time.monotonic() - started
            rate = encoded * cache.views / max(seconds, 1e-9)
            self.run.record(
                "encode",
                seconds=round(seconds, 1),
                images_per_second=round(rate, 1),
                precision=precision_of(self.accelerator),
            )
        return cache

    def condition_vectors(self) -> VectorCache | None:
        """The vectors of all images, of captions or given by users; None where the settings ask for none."""
        settings, device = self.settings, self.accelerator.device
        if not (settings.prior.text_encoder or settings.data.condition):
            return None
        if self._vectors is None:
            source = self.images()[0].source
            with self.locked():
                self._vectors = condition_vectors(
                    settings, source, self.run.conditions, device, self.processes, self.say
                )
        return self._vectors

    def train_prior(self, budget_seconds: float | None = None) -> None:
        """Train the prior, the second stage, and save it in RUN/prior.

        Args:
            budget_seconds: time for this stage; None trains all steps.

        Raises:
            SettingError: if the run has no tokenizer yet.
        """
        with self.locked():
            tokenizer = self._trained_tokenizer()
            self._forget_prior_unless("tokenizer", (tokenizer_hash(tokenizer),), "The tokenizer has")
            if self._finished("prior"):
                self._renew_defaults()
                return
            vectors = self.condition_vectors()
            key = None if vectors is None else vectors.key
            digests = ("", "") if key is None else (key.digest(), replace(key, names="").digest())  # of older runs too
            self._forget_prior_unless("condition", digests, "The captions or vectors have")
            cache, train = self.encode(), self.images()[0]
            held_out = self._held_out_codes(tokenizer, vectors)
            mine = None if vectors is None else ImageVectors(vectors, train.rows)
            stage = PriorStage(self.settings, cache, held_out, tokenizer, self.accelerator, self.run, mine)
            if not self._run(stage, budget_seconds):
                self._renew_defaults()

    def train(self) -> None:
        """Train both stages, within the time budget if there is one."""
        self._is_shared = self.budget_seconds is not None
        try:
            self._train_both()
        finally:
            self._is_shared = False

    def _train_both(self) -> None:
        with self.locked():
            budget, given = self.budget_seconds, given_tokenizer(self.run)
            if given is not None:
                self.say(f"The tokenizer is that of {given} and used as it is.")
            if budget is not None and budget <= 0:
                raise SettingError(f"A budget is a positive time, such as 30m, not {budget:g} s.")
            if not all(self._is_finished(name) for name in STAGES):
                self.condition_vectors()  # before hours of training that a fault in them would waste
            if budget is None:
                if given is None:
                    self.train_tokenizer()
                self.train_prior()
                return
            parts = split(budget, STAGES, self.settings.tokenizer_share)
            if given is None:
                self.train_tokenizer(parts["tokenizer"])
            if not self._is_finished("prior"):  # whose images may be gone by now
                self.encode()
            reserved = budget - sum(parts.values())
            spent = self.run.progress()["tokenizer"]["seconds"]
            # What went on around the stages (verifying and encoding images) counts too, as far as it was done just now.
            around = max(0.0, time.monotonic() - self._started - self._seconds_in_stages)
            self.train_prior(max(budget - spent - around - reserved, 0.2 * budget))

    def locked(self) -> AbstractContextManager[object]:
        """A context in which no other command trains in this folder; `RunInUseError` if one does already."""
        return self.run.locked() if self.processes.is_main else nullcontext()

    # -- pieces -------------------------------------------------------------------------------------------

    def _run(self, stage: Stage, budget_seconds: float | None) -> bool:
        """Train a stage; whether anything came of it."""
        started = time.monotonic()
        origin = init_source(self.run, stage.name)
        if origin is not None:
            self.say(stage.begin_from(origin))
        stage_run = StageRun(stage, self.run, self.accelerator, budget_seconds, self.say, origin is not None)
        is_new = stage_run.train()
        # A goal that brought nothing is not noted, so that the same command tells the cure again.
        if self.processes.is_main and (is_new or not self.run.progress()[stage.name].get("goal")):
            self.run.record(stage.name, goal=self._goal(stage.training))
        self.processes.wait()  # so that all find the same record and the saved model
        self.accelerator.free_memory()  # or it would keep this stage's optimizers through the next
        self._seconds_in_stages += time.monotonic() - started
        return is_new

    def _goal(self, training: TrainingSettings) -> dict[str, float | None]:
        """What a stage is asked for: asking again for the same trains nothing, asking for more trains on."""
        goal = {"steps": training.steps, "budget_seconds": self.budget_seconds}
        return {**goal, "shared": True} if self._is_shared else goal

    def _finished(self, name: str) -> bool:
        finished = self._is_finished(name)
        if finished:
            self.say(f"The {name} is trained already ({self.run.progress()[name]['steps']:,} steps).")
        return finished

    def _is_finished(self, name: str) -> bool:
        done, training = self.run.progress().get(name, {}), getattr(self.settings, f"{name}_training")
        asked = self._goal(training)
        if not (done.get("goal") or {}).get("shared"):  # it had all the time, or is of a run that did not tell
            asked.pop("shared", None)
        return bool(done.get("given")) or done.get("goal") == asked

    def _forget_prior_unless(self, what: str, mine: Sequence[str], changed: str) -> None:
        """A prior that was begun with another tokenizer, captions or vectors than these starts anew.

        Args:
            what: the entry of the run's progress that tells with which.
            mine: what it says of these, which is written, and what else older versions may have said of them.
            changed: the beginning of the sentence that says so.
        """
        with self.processes.main_first():
            if not self.processes.is_main:
                return
            if self.run.progress().get("prior", {}).get(what, mine[0]) not in mine:
                self.say(f"{changed} changed since the prior was begun: the prior is trained anew.")
                self.run.checkpoints("prior").clear()
                self.run.record("prior", goal=None)
            self.run.record("prior", **{what: mine[0]})

    def _renew_defaults(self) -> None:
        """Let the finished pipeline sample as the settings say now, with the text encoder where it lies now."""
        if not self.processes.is_main:
            return
        index, config = load_index(self.run.path), load_prior_config(self.run.prior)
        defaults = sampling_defaults(
            self.settings, load_process(self.run.diffusion), config.is_conditional or index.guide
        )
        encoder = named_encoder(self.settings)
        if not Path(encoder).is_dir():  # the index may name by hand where it lies now
            encoder = index.text_encoder
        if (defaults, encoder) != (index.sampling, index.text_encoder):
            renewed = {"sampling": asdict(defaults), "text_encoder": encoder}
            write_json(self.run.index, {**read_json(self.run.index), **renewed})
            told = ", ".join(f"{name}={value}" for name, value in asdict(defaults).items())
            self.say(f"{self.run.index} samples as the settings say now: {told}.")

    def _trained_tokenizer(self) -> BinaryAutoencoder:
        if not self.run.tokenizer.is_dir():
            raise SettingError(
                f"{self.run.path} holds no trained tokenizer yet: run bld train-tokenizer with the same --out first."
            )
        tokenizer = load_tokenizer(self.run.tokenizer).to(self.accelerator.device)
        if self.settings.compile:
            tokenizer.compile(dynamic=False)
        return tokenizer

    def _held_out_codes(self, tokenizer: BinaryAutoencoder, vectors: VectorCache | None) -> HeldOutCodes:
        """Of some held-out images, always the same, codes as the prior is trained on; their conditions beside them."""
        held_out, seed = self.images()[1], self.settings.seed
        chosen = torch.tensor(spread(len(held_out), MOST_MEASURED, seed))
        draws = draws_of(tokenizer, self.settings.codes.draws)
        with self.accelerator.autocast():
            tokens = held_out_codes(tokenizer, held_out, chosen, draws=draws, seed=seed)
            entropy = held_out_entropy(tokenizer, held_out, chosen)
        tokens = tokens.flatten(0, 1)
        if entropy is not None and draws and self.processes.is_main:
            independent = entropy.independent_bits
            self.run.record(
                "code",
                tokenizer=tokenizer_hash(tokenizer),
                images=entropy.images,
                noise_bits=round(entropy.noise_bits, 3),
                **({} if independent is None else {"independent_bits": round(independent, 3)}),
                noise_of_bits=[round(bit, 4) for bit in entropy.noise_of_bits.tolist()],
            )
        if vectors is None:
            labels = held_out.labels if self.settings.prior.class_conditional else None
            return HeldOutCodes(tokens, None if labels is None else labels[chosen], draws=draws)
        rows = held_out.rows[chosen]
        captions = read_captions(held_out.source, self.settings.data.captions) if vectors.key.encoder else None
        told = None if captions is None else [captions[row] for row in rows.tolist()]
        return HeldOutCodes(tokens, vectors.read(rows), told, draws)
