"""Experiments whose rows are priors, sampled and measured: how a row is measured, a table made, a claim judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from PIL import Image

from bld.errors import SettingError
from bld.experiments.comparison import Comparison
from bld.experiments.novelty import novelty
from bld.experiments.page import Findings, Table
from bld.experiments.runner import Runner
from bld.experiments.sampled import Sampling
from bld.experiments.scales import Scale
from bld.experiments.verdict import Gate, mean_and_spread

TIMED, TIMED_SAMPLES = 3, 100
SAMPLING_SEEDS = 3  # with one training seed the spread is over these
Picture = tuple[str, str, Image.Image]
Values = dict[str, dict[str, list[float]]]
"""row label → metric → its values over seeds."""

HEADINGS = {
    "precision": "precision ↑",
    "recall": "recall ↑",
    "diversity": "diversity",
    "accuracy": "recognised ↑",
    "is_mean": "inception score ↑",
    "kid_mean": "KID ↓",
    "bits_per_code": "bits per code ↓",
    "bits_to_learn": "bits without the coin flips ↓",
    "seconds_per_sample": "seconds per sample ↓",
    "novelty": "distance to training images (unseen images: 1)",
    "copies": "share of copies (unseen images: 0.01)",
    "cas_top1": "CAS top-1 ↑",
    "cas_top5": "CAS top-5 ↑",
}
BITS = ("bits_per_code", "bits_to_learn")
NOVELTY = ("novelty", "copies")
NOT_JUDGED = ("seconds_per_sample", *NOVELTY)  # of the gate no part: whether rows differ is asked of the others
EVIDENCE = (
    "Rows of binary diffusion add what a noised bit says about itself to the logits (`prior.evidence`), which is ours "
    "and not the paper's, unless a row says otherwise."
)
LESSON = ("cas_top1", "cas_top5")
UNTRAINED = "an untrained network"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: what it is called.
        prior: its kind; empty stands for the real training images.
        sampling: how the prior is sampled.
        paper: the paper's metrics for it, as text, by heading.
        has_bits: whether the code length of this prior is of this row too: it visits every step, in the order that the
            bound is of.  Table 7, which compares what networks learn, has it in every row, and says so.
    """

    label: str
    prior: str
    sampling: Sampling
    paper: dict[str, str] = field(default_factory=dict)
    has_bits: bool = True


class Asked(Values):
    """Values that remember which rows a claim asks for: those that it is about.

    Attributes:
        rows: their labels.
    """

    def __init__(self, values: Values):
        super().__init__(values)
        self.rows: set[str] = set()

    def __getitem__(self, label: str) -> dict[str, list[float]]:
        self.rows.add(label)
        return super().__getitem__(label)


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        name: what `bld reproduce` calls it.
        title: heading of its page.
        claim: the paper's, in a sentence.
        rows: scale → the rows.
        claims: values → comparisons that the verdict rests on.
        metrics: names of the metrics that are shown.
        pictures: drawn from runner, rows and values.
        notes: what differs from the paper, what to think of it.
    """

    name: str
    title: str
    claim: str
    rows: Callable[[Scale], list[Row]]
    claims: Callable[[Values], list[Comparison]]
    metrics: tuple[str, ...] = ("fd", "precision", "recall")
    pictures: Callable[[Runner, list[Row], Values], list[Picture]] = lambda *_: []
    notes: tuple[str, ...] = ()

    def run(self, runner: Runner, seeds: int) -> Findings:
        """Train what is missing, measure every row, and judge."""
        rows = rows_of(self, runner.scale)
        refuse_without_classes(runner, [row.sampling for row in rows], self.metrics)
        for seed in range(seeds):  # every row once before any again: what is stopped midway can be looked at
            for prior in dict.fromkeys(row.prior for row in rows if row.prior):
                runner.prior(prior, seed)
        shown_metrics = metrics_of(runner, self.metrics)
        values = {row.label: measure(runner, row, seeds, shown_metrics) for row in rows}
        untrained = measure_untrained(runner, rows, seeds)
        if "seconds_per_sample" in self.metrics:
            sampled = [row for row in rows if row.prior]
            timed = runner.seconds([(row.prior, row.sampling) for row in sampled], TIMED_SAMPLES, TIMED)
            for row, seconds in zip(sampled, timed, strict=True):
                values[row.label]["seconds_per_sample"] = seconds
        asked = Asked(values)
        findings = Findings(self.title, self.claim, comparisons=self.claims(asked), basis=over(runner.scale, seeds))
        findings.gate = gate_of(about(rows, asked), values, untrained["fd"], shown_metrics, runner.best())
        everything = {**values, UNTRAINED: untrained}
        findings.values = everything
        shown = [*rows, Row(UNTRAINED, "", Sampling())]
        findings.tables.append((_caption(runner, seeds), _table(runner, shown, everything, shown_metrics)))
        findings.pictures += self.pictures(runner, rows, values)
        findings.notes += [_what_differs(runner), EVIDENCE, *self.notes]
        return findings


def rows_of(item: Item, scale: Scale) -> list[Row]:
    """The rows of a table, at the scale's guidance where they do not choose their own."""
    return [
        row if row.sampling.labelled else replace(row, sampling=row.sampling.guided(scale.guidance))
        for row in item.rows(scale)
    ]


def refuse_without_classes(runner: Runner, samplings: Sequence[Sampling], metrics: tuple[str, ...] = ()) -> None:
    """Refuse images without the classes that samples are asked for, or that CAS among the metrics is tested by.

    Raises:
        SettingError: before anything is trained.
    """
    if not any(sampling.labelled for sampling in samplings):
        return
    if not runner.images.classes:
        raise SettingError(
            f"{runner.data} has no classes, and here each sample is asked to be of one: put its images into one "
            "folder per class, or name other --data."
        )
    if runner.unseen(0).labels is None and set(LESSON) & set(metrics_of(runner, metrics)):
        raise SettingError(
            f"{runner.test} has no classes, and here a classifier that samples taught is tested on it: put its images "
            "into one folder per class, or name other --test-data."
        )


def over(scale: Scale, seeds: int) -> str:
    """What a verdict rests on."""
    if seeds > 1:
        return f"over {seeds} training seeds" + (" of each prior, on one tokenizer" if scale.one_tokenizer else "")
    return f"over {SAMPLING_SEEDS} sampling seeds of one training of each row: other trainings may differ by more"


def metrics_of(runner: Runner, metrics: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics to show; where the judge does not know the classes, those of CAS stand in for "accuracy"."""
    if "accuracy" not in metrics or runner.judge_knows_classes:
        return metrics
    others = tuple(name for name in metrics if name != "accuracy" and name not in LESSON)
    return (*others, *LESSON)


def measure(runner: Runner, row: Row, seeds: int, metrics: Sequence[str]) -> dict[str, list[float]]:
    """Each metric over training seeds, each sampled with a seed of its own; with one of those, over sampling seeds."""
    drawn = [replace(row.sampling, seed=seed) for seed in range(seeds if seeds > 1 else SAMPLING_SEEDS)]
    runs = [(sampling.seed if seeds > 1 else 0, sampling) for sampling in drawn]
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for seed, sampling in runs:
        quality = runner.quality(row.prior, seed, sampling) if row.prior else {}
        for name in metrics:
            if name in quality:
                found[name].append(quality[name])
        if "novelty" in metrics and row.prior:
            new = novelty(runner, row.prior, seed, sampling)
            for name in set(NOVELTY) & set(metrics):
                found[name].append(new[name])
    if set(LESSON) & set(metrics):
        for seed, sampling in runs:
            lesson = runner.lesson(row.prior or None, seed, sampling)
            for name in LESSON:
                found[name].append(lesson[name])
    if set(BITS) & set(metrics) and row.prior != "gaussian" and row.has_bits:
        for seed in range(seeds):
            bits = runner.likelihood(row.prior, seed)
            bits["bits_to_learn"] = bits["bits_per_code"] - bits.get("noise_bits", 0.0)
            for name in set(BITS) & set(metrics):
                found[name].append(bits[name])
    return found


def measure_untrained(runner: Runner, rows: Sequence[Row], seeds: int) -> dict[str, list[float]]:
    """What the samples of an untrained network measure, over as many seeds as a row."""
    prior, labelled = untrained_kind(rows, runner.scale), any(row.sampling.labelled for row in rows)
    found: dict[str, list[float]] = {}
    for seed in range(seeds if seeds > 1 else SAMPLING_SEEDS):
        for name, value in runner.untrained(prior, Sampling(16, seed=seed, labelled=labelled)).items():
            found.setdefault(name, []).append(value)
    return found


def untrained_kind(rows: Sequence[Row], scale: Scale) -> str:
    """The prior of seed 0 whose tokenizer draws what an untrained network of its kind samples."""
    return scale.conditional if any(row.sampling.labelled for row in rows) else "bernoulli"


def about(rows: Sequence[Row], asked: Asked) -> list[Row]:
    """All rows of the networks that the claim is about, those at another sampling included."""
    networks = {row.prior for row in rows if row.prior and row.label in asked.rows}
    return [row for row in rows if row.prior in networks]


def gate_of(
    rows: Sequence[Row], values: Values, untrained: Sequence[float], metrics: Sequence[str], best: float
) -> Gate:
    """Each network at its best sampling between an untrained one and `best`; and whether the rows differ at all."""
    networks: dict[str, list[float]] = {}
    for row in rows:
        distances = values[row.label].get("fd", [])
        if distances and fmean(distances) < fmean(networks.get(row.prior, [math.inf])):
            networks[row.prior] = distances
    of_samples = [name for name in metrics if name not in NOT_JUDGED]
    moved = {name: [values[row.label].get(name, []) for row in rows] for name in of_samples}
    return Gate(networks, untrained, moved, best, networks={row.label: row.prior for row in rows})


def _caption(runner: Runner, seeds: int) -> str:
    spread = f"{seeds} training seeds" if seeds > 1 else f"{SAMPLING_SEEDS} sampling seeds of one training"
    spread += " of each prior, all on the codes of one tokenizer" if runner.scale.one_tokenizer and seeds > 1 else ""
    seen = "of those trained on, as in the paper" if runner.scale.knows_reference else "that nothing was trained on"
    return (
        f"Mean ± standard deviation over {spread}; {runner.scale.samples} samples a metric, against "
        f"{len(runner.reference):,} real images {seen}, features of {runner.extractor.name} "
        f"({runner.extractor.sha256}); k = 3 for precision and recall."
    )


def _table(runner: Runner, rows: list[Row], values: Values, metrics: Sequence[str]) -> Table:
    papers = list(dict.fromkeys(heading for row in rows for heading in row.paper))
    shown = [name for name in metrics if any(values[row.label].get(name) for row in rows)]
    distance = f"{runner.extractor.distance_name()} ↓"
    headings = ["", *(f"paper: {heading}" for heading in papers), *(HEADINGS.get(name, distance) for name in shown)]
    cells = [
        [
            row.label,
            *(row.paper.get(heading, "–") for heading in papers),
            *(mean_and_spread(values[row.label].get(name, [])) for name in shown),
        ]
        for row in rows
    ]
    return Table(headings, cells)


def _what_differs(runner: Runner) -> str:
    if runner.scale.name == "paper":
        return "Data, networks and budgets are the preset's; the judge is named above."
    own = runner.scale.classifier_steps and not runner.features
    judge = "a classifier of the data's own labels" if own else "the features named above"
    return (
        "The paper trains for days on images of 256×256 and judges 50,000 samples by Inception (FID); this is the "
        f"scale `{runner.scale.label}`, minutes a row, judged by {judge}: its distances compare rows of this page, and "
        "nothing else."
    )


def below(values: Values, metric: str, low: str, high: str, words: str) -> Comparison:
    """The claim that a metric of the row `low` lies below that of `high`, paired by seed."""
    return Comparison(words, values[low][metric], values[high][metric], paired=True, rows=(low, high))


def all_below(*claims: tuple[str, str, str, str]) -> Callable[[Values], list[Comparison]]:
    """What makes the claims `below` of several (metric, low, high, words)."""
    return lambda values: [below(values, *claim) for claim in claims]
