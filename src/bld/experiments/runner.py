"""Samples and measures what an experiment trains; everything is made once, kept in a folder, and shared between them.

    ROOT/SCALE/tokenizers/, priors/      what is trained (`bld.experiments.trainings`)
    ROOT/SCALE/classifier/               the judge: a classifier of the data's own labels
    ROOT/SCALE/results/*.json            metrics, each under a key of all that made it

A stopped experiment goes on where it was: trainings resume, and what is measured is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bld.data import ImageSet, Preprocessing, meet_by_name, to_uint8
from bld.errors import SettingError
from bld.evaluation.classifier_training import train_classifier
from bld.evaluation.evaluate import likelihood_metrics
from bld.evaluation.features import FeatureExtractor, load_extractor
from bld.evaluation.metrics.cas import accuracy, on_disk, steps_of, train_classifier_on
from bld.evaluation.metrics.distances import extract, frechet_distance, reference_features, score
from bld.experiments.kept import kept_metrics
from bld.experiments.keys import OF_THE_TOKENIZER, what_counts
from bld.experiments.page import machine
from bld.experiments.sampled import Sampling
from bld.experiments.scales import Scale
from bld.experiments.trainings import Say, Trainings
from bld.pipeline import BinaryLatentDiffusionPipeline
from bld.seeding import derive_seed, keyed_draws, keyed_permutation
from bld.serialization.models import load_tokenizer
from bld.training.run_images import split_images
from bld.training.stages.prior import build_network

BATCH = 250
LIKELIHOOD_CODES = 512
BEST_DRAWS = 10


class Runner(Trainings):
    """One scale's trained things and metrics below a root folder.

    data: where the images are, for a scale that does not bring its own.  test: images nobody was trained on; without,
    the held-out part of the data.  features: another judge than the scale's classifier.
    """

    def __init__(self, scale: Scale, root: Path, say: Say, data: str = "", test: str = "", features: str = "") -> None:
        super().__init__(scale, root, say, data)
        self.test, self.features = test, features
        self.machines: set[str] = set()  # that measured what was asked for since they were cleared

    def pipeline(self, prior: str, seed: int) -> BinaryLatentDiffusionPipeline:
        """A trained prior with its tokenizer, on a GPU if there is one."""
        return BinaryLatentDiffusionPipeline.from_pretrained(self.prior(prior, seed).path).to(self.device)

    @property
    def device(self) -> str:
        """Where everything is sampled and judged."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    # -- images and their judge ---------------------------------------------------------------------------

    @cached_property
    def reference(self) -> ImageSet:
        """The real images that samples are held against, the same for every row and seed: of very many, some.

        Nothing was trained on them, judge included, or a prior that repeats its training images would come nearest; at
        the scale "paper" they are the training images, as in the paper.
        """
        images, most = self.split(0)[0] if self.scale.knows_reference else self.unseen(0), self.scale.reference
        n = len(images)
        return images if n <= most else images.subset(keyed_permutation(0, "reference", 0, n)[:most])

    def unseen(self, seed: int) -> ImageSet:
        """Images that no network of this seed was trained on: the test images, else the held-out part."""
        return self._test_images if self.test else self.split(seed)[1]

    @cached_property
    def _test_images(self) -> ImageSet:
        images = ImageSet.open(self.test, Preprocessing(self._settings.tokenizer.image_size))
        known = self.images.classes
        if unknown := meet_by_name(images.source, known) if known else []:
            raise SettingError(
                f"{self.test} has classes that {self.data} does not know ({', '.join(unknown[:5])}): name its folders "
                "as those of the data."
            )
        return images

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The judge."""
        if self.features or not self.scale.classifier_steps:
            return load_extractor(self.features or "inception")
        images, flips = self.images, self._settings.data.flip or self.scale.judge_flips
        shown = replace(images.preprocessing, flip=flips)
        judged = ImageSet(images.source, shown, images.rows, images.pixels, images.skipped)
        train, rest = split_images(judged, self._settings)
        return train_classifier(  # one that was made so is taken
            train, rest, self.root / "classifier", steps=self.scale.classifier_steps, say=self.say
        )

    @property
    def judge_knows_classes(self) -> bool:
        """Whether the judge can say if a sample is of the class that it was asked to be."""
        return bool(self.images.classes) and list(self.extractor.classes) == self.images.classes

    # -- metrics ------------------------------------------------------------------------------------------

    def kept(self, name: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The metrics computed under this key, from disk if they are there."""
        metrics, machine = kept_metrics(self.root / "results", name, key, compute)
        self.machines.add(machine)
        return metrics

    def key(self, prior: str | None, seed: int, **more: Any) -> dict[str, Any]:
        """What made a measurement: the prior's settings (without one the data's), the images, and `more`."""
        tokenizer = self.tokenizer_of(prior) if prior else self.scale.base
        settings = self.settings(tokenizer, prior or "bernoulli", seed)
        made = {"settings": what_counts(settings, ("",) if prior else ("seed", "data."))}
        shared = {"shares": tokenizer} if prior and self.scale.shares(tokenizer) else {}
        return {"prior": prior, "seed": seed, **made, **shared, **self.given(), **more}

    def tokenizer_key(self, name: str, seed: int, **more: Any) -> dict[str, Any]:
        """What made a measurement of a tokenizer alone, which no setting of a prior changes."""
        settings = what_counts(self.settings(name, "bernoulli", seed), OF_THE_TOKENIZER)
        return {"tokenizer": name, "seed": seed, "settings": settings, **self.given(), **more}

    def _judged(self, sampling: Sampling) -> dict[str, Any]:
        """What samples are made of and held against, for a key."""
        drawn = {"samples": self.scale.samples, "sampling": asdict(sampling)}
        return {**drawn, **self._images_and_judge()}

    def given(self) -> dict[str, str]:
        """The images that were trained on and those that were not, for a key."""
        return {"images": self.images.fingerprint, "unseen": self.unseen(0).fingerprint}

    def _images_and_judge(self) -> dict[str, str]:
        """What images are held against, for a key."""
        return {"reference": self.reference.fingerprint, "extractor": self.extractor.sha256}

    def _reference_features(self) -> Any:
        return reference_features(self.reference, self.extractor, self.root / "results")

    def batches(
        self, pipeline: BinaryLatentDiffusionPipeline, sampling: Sampling, count: int
    ) -> Iterator[tuple[Tensor, list[int] | None]]:
        """(images uint8 (b, 3, S, S), their classes) of samples 0 … count - 1."""
        if sampling.posterior != "exact":
            pipeline = pipeline.with_posterior(sampling.posterior)
        options: dict[str, Any] = {"reveal": sampling.reveal} if sampling.reveal != "random" else {}
        classes, steps = len(pipeline.classes), sampling.steps or pipeline.diffusion.steps
        for start in range(0, count, BATCH):
            n = min(BATCH, count - start)
            labels = [(start + i) % classes for i in range(n)] if sampling.labelled else None
            images = pipeline(
                n, labels, steps, sampling.temperature, sampling.guidance_scale, generator=sampling.seed,
                output_type="pt", batch_size=BATCH, first_index=start, **options,
            ).images  # fmt: skip
            yield to_uint8(images * 2 - 1), labels

    def quality(self, prior: str, seed: int, sampling: Sampling) -> dict[str, float]:
        """Fréchet distance, precision, recall, diversity of a prior's samples against real images.

        Where the samples have classes, also "accuracy": the share that the judge takes for what they were asked to be.
        """
        key = self.key(prior, seed, **self._judged(sampling))

        def compute() -> dict[str, float]:
            self.say(f"Sampling {self.scale.samples} images of {prior}, seed {seed}: {sampling}.")
            pipeline, labels = self.pipeline(prior, seed), []

            def images() -> Iterator[Tensor]:
                for batch, asked in self.batches(pipeline, sampling, self.scale.samples):
                    labels.extend(asked or [])
                    yield batch

            table = extract(images(), self.extractor)
            metrics = score(table, self._reference_features())
            if labels and table.logits is not None and self.judge_knows_classes:
                metrics["accuracy"] = float((table.logits.argmax(1) == torch.tensor(labels)).float().mean())
            return metrics

        return self.kept("quality", key, compute)

    def best(self) -> float:
        """The distance that no prior can be asked to come below: of real images, rebuilt from drawn codes.

        They are as many as a row has samples, as a Fréchet distance of fewer images is larger, and none of them is in
        the reference: unseen ones beside it where there are enough, else of one random half of the reference against
        the other, where a half that is smaller than a row makes the distance larger, and the gate milder.  The mean of
        up to ten such draws.
        """
        drawn = {"samples": self.scale.samples, "draws": BEST_DRAWS}
        key = self.tokenizer_key(self.scale.base, 0, **drawn, **self._images_and_judge())

        def compute() -> dict[str, Any]:
            found = [frechet_distance(rebuilt, real) for rebuilt, real in self._rebuilt_and_real()]
            return {"fd": fmean(found), "draws": found}

        return float(self.kept("rebuilt", key, compute)["fd"])

    def _rebuilt_and_real(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of the sides of each draw of `best`."""
        count, apart, real = self.scale.samples, self._beside_the_reference(), self._reference_features().features
        if len(apart) < count:
            rebuilt = extract(self._rebuilt(self.reference), self.extractor).features
            for draw in range(BEST_DRAWS):
                one, other = np.array_split(keyed_permutation(0, "halves", draw, len(real)), 2)
                yield rebuilt[one[:count]], real[other]
            return
        for rows in torch.arange(len(apart)).split(count)[:BEST_DRAWS]:
            if len(rows) == count:
                yield extract(self._rebuilt(apart.subset(rows)), self.extractor).features, real

    def _beside_the_reference(self) -> ImageSet:
        """Images of the reference's kind that it does not hold, in random order."""
        images = self.split(0)[0] if self.scale.knows_reference else self.unseen(0)
        return images.subset(keyed_permutation(0, "reference", 0, len(images))[len(self.reference) :])

    @torch.no_grad()
    def _rebuilt(self, images: ImageSet) -> Iterator[Tensor]:
        """Batches of uint8 images, as the base tokenizer rebuilds them from drawn codes."""
        model = load_tokenizer(self.tokenizer(self.scale.base, 0).tokenizer).to(self.device)
        for rows in torch.arange(len(images)).split(BATCH):
            draws = keyed_draws(0, "rebuilt", rows.tolist())
            yield to_uint8(model.decode(model.encode(images.centre(rows).to(self.device), draws))).cpu()

    def untrained(self, prior: str, sampling: Sampling) -> dict[str, float]:
        """What the samples of a network of this kind measure before any training, drawn by the trained tokenizer."""
        key = self.key(prior, 0, **self._judged(sampling), evidence="of the process")
        del key["seed"]

        def compute() -> dict[str, float]:
            trained = self.pipeline(prior, 0)
            torch.manual_seed(derive_seed(sampling.seed, "untrained"))
            network = build_network(trained.diffusion, trained.prior.config).to(trained.device)
            pipeline = BinaryLatentDiffusionPipeline(trained.tokenizer, network, trained.diffusion, trained.index)
            table = extract(
                (batch for batch, _ in self.batches(pipeline, sampling, self.scale.samples)), self.extractor
            )
            return score(table, self._reference_features())

        return self.kept("untrained", key, compute)

    def seconds(self, rows: Sequence[tuple[str, Sampling]], count: int, rounds: int) -> list[list[float]]:
        """Seconds per sample of each (prior, sampling), `count` at once and decoded; in turns, should others work."""
        drawn = [(self.key(prior, 0), asdict(sampling)) for prior, sampling in rows]
        key = {"rows": drawn, "samples": count, "rounds": rounds, "device": machine()}

        def compute() -> dict[str, Any]:
            self.say(f"Timing {len(rows)} samplers in turns.")
            pipelines = {prior: self.pipeline(prior, 0) for prior, _ in rows}
            taken: list[list[float]] = [[] for _ in rows]
            for turn in range(rounds + 1):  # the first warms up
                for (prior, sampling), times in zip(rows, taken, strict=True):
                    begun = time.perf_counter()
                    list(self.batches(pipelines[prior], sampling, count))
                    times += [(time.perf_counter() - begun) / count] if turn else []
            return {"seconds": taken}

        return list(self.kept("seconds", key, compute)["seconds"])

    def lesson(self, prior: str | None, seed: int, sampling: Sampling) -> dict[str, float]:
        """Classification accuracy score: cas_top1 and cas_top5 of a small network taught by samples of a prior.

        prior None: by as many real training images, the most that samples can be hoped to teach.
        """
        drawn = {"samples": self.scale.samples, "sampling": asdict(sampling)}
        key = self.key(prior, seed, **drawn, cas=self.scale.cas)

        def compute() -> dict[str, float]:
            self.say(f"Teaching a classifier by {prior or 'real images'}, seed {seed}.")
            train, (network, epochs) = self.split(seed)[0], self.scale.cas
            labels: list[int] = []

            def images() -> Iterator[Tensor]:
                if prior:
                    for batch, asked in self.batches(self.pipeline(prior, seed), sampling, self.scale.samples):
                        labels.extend(asked or [])
                        yield batch
                    return
                assert train.labels is not None
                rows = torch.from_numpy(keyed_permutation(seed, "lesson", 0, len(train))[: self.scale.samples].copy())
                for part in rows.split(BATCH):
                    labels.extend(train.labels[part].tolist())
                    yield train.uint8_centre(part)

            count = self.scale.samples if prior else min(self.scale.samples, len(train))
            pixels = on_disk(images(), count, self.root / "results")
            model = train_classifier_on(
                pixels, torch.tensor(labels), len(train.classes), steps=steps_of(epochs, count), network=network,
                seed=seed, folder=self.root / "results", say=self.say, device=self.device,
            )  # fmt: skip
            return accuracy(model, self.unseen(seed))

        return self.kept("lesson", key, compute)

    def likelihood(self, prior: str, seed: int) -> dict[str, float]:
        """Bits that the prior needs for codes of unseen images (`likelihood_metrics`).

        The codes are drawn as in training, once each, the same ones for every prior of the seed on the same tokenizer.
        """
        key = self.key(prior, seed, codes=LIKELIHOOD_CODES, draws=1, drawn_by=seed)

        def compute() -> dict[str, float]:
            self.say(f"Counting the bits of {prior}, seed {seed}.")
            unseen = self.split(seed)[1]
            return likelihood_metrics(self.pipeline(prior, seed), unseen, LIKELIHOOD_CODES, seed, BATCH, draws=1)

        return self.kept("bits", key, compute)

    def parameters(self, prior: str) -> int:
        """Of the prior's network."""
        return sum(p.numel() for p in self.pipeline(prior, 0).prior.parameters())
