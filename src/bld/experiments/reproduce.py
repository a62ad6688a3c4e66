"""From the name of an experiment to its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bld.data import open_images
from bld.experiments.figures import FIGURES
from bld.experiments.judged_again import judge_again
from bld.experiments.page import write_index, write_page
from bld.experiments.prior_rows import SAMPLING_SEEDS, Row, rows_of, untrained_kind
from bld.experiments.rates import TRIAL_SEED
from bld.experiments.runner import Runner
from bld.experiments.scales import Scale
from bld.experiments.sweeps import SWEEPS
from bld.experiments.tables import TABLES
from bld.planning.cost import describe

ITEMS = [*TABLES, *SWEEPS]
UNGUIDED = ("table6", "figure5")  # where a pass a step is timed, and bits of given codes are flipped
OF_ONE_TRAINING = ("table6", "figure5", "figureO")  # that of seed 0
NAMES = {item.name: item for item in ITEMS}


def titles() -> dict[str, str]:
    """Every experiment's name and title, sorted by name, but tables and training-steps first and `posterior` last."""
    found = {**{item.name: item.title for item in ITEMS}, **{name: title for name, (title, _) in FIGURES.items()}}
    return dict(sorted(found.items(), key=lambda pair: (pair[0][0] != "t", pair[0] == "posterior", pair[0])))


def reproduce(runner: Runner, name: str, seeds: int, pages: Path, command: str) -> Path:
    """Train what is missing, measure what is not measured yet, write the page; returns its path."""
    runner.machines.clear()
    findings = NAMES[name].run(runner, seeds) if name in NAMES else FIGURES[name][1](runner, seeds)
    setting = list(_setting(runner, name, seeds))
    path = write_page(pages, f"{name}-{runner.scale.label}", findings, command, setting, runner.machines)
    write_index(pages)
    return path


def again(name: str, scale: Scale, pages: Path, runner: Callable[[], Runner]) -> Path:
    """Judge the numbers of a page that is there by today's rules (`judge_again`); returns its path."""
    path = judge_again(pages, NAMES.get(name), name, scale, runner)
    write_index(pages)
    return path


def _setting(runner: Runner, name: str, seeds: int) -> Iterator[str]:
    """Lines on data, seeds and budget."""
    trained = [TRIAL_SEED] if name == "rates" else range(1 if name in OF_ONE_TRAINING else seeds)
    many = "s" * (len(trained) > 1)
    yield f"Images: {Path(runner.data).name}; training seed{many}: {', '.join(map(str, trained))}."
    rows: list[Row] = []
    if name in NAMES:
        rows = NAMES[name].rows(runner.scale)
    kinds = sorted({row.prior for row in rows if row.prior})
    if name not in ("table4", "rates"):  # the one trains no prior, the other none of the usual length
        prior = runner.settings(runner.scale.base, "bernoulli", 0)
        base, training = prior.tokenizer_training, prior.prior_training
        yield f"Tokenizer: {base.steps:,} steps of {base.batch_size}, shared by all rows that use its codes."
        yield (
            f"Prior: {training.steps:,} steps of {training.batch_size}, width {prior.prior.dim}, depth "
            f"{prior.prior.depth}, the same for every row{_but(runner, kinds, training.steps)}."
        )
        if runner.scale.guidance and name not in UNGUIDED:
            yield (
                "Priors know the classes, the same number of samples of each is asked for, and where nothing else is "
                f"said they are guided by {runner.scale.guidance:g} (1 is without guidance)."
            )
    if kinds:
        yield "Parameters: " + ", ".join(f"{kind} {runner.parameters(kind):,}" for kind in kinds) + "."


def _but(runner: Runner, kinds: Sequence[str], usual: int) -> str:
    """Which kinds of prior are trained for another number of steps, as the end of a sentence."""
    steps = {kind: runner.settings(runner.tokenizer_of(kind), kind, 0).prior_training.steps for kind in kinds}
    others = [f"{kind}, trained for {count:,} steps" for kind, count in steps.items() if count != usual]
    return f" but {' and '.join(others)}" if others else ""


def work(runner: Runner, name: str, seeds: int) -> str:
    """How many networks an experiment trains at this scale, those that are there already included."""
    if name == "table4":
        return f"{name} trains {len(runner.scale.formats) * seeds} tokenizers"
    if name not in NAMES:
        return f"{name} trains what it needs"
    rows = rows_of(NAMES[name], runner.scale)
    priors = {(row.prior, seed) for row in rows if row.prior for seed in range(seeds)}
    priors.add((untrained_kind(rows, runner.scale), 0))
    used = {(runner.tokenizer_of(prior), seed) for prior, seed in priors}
    tokenizers = {(tokenizer, 0 if runner.scale.shares(tokenizer) else seed) for tokenizer, seed in used}
    return f"{name} trains {len(tokenizers)} tokenizers and {len(priors)} priors"


def cost(runner: Runner, name: str, seeds: int) -> Iterator[str]:
    """What an experiment would cost at this scale on its data, before anything is trained."""
    rows = NAMES[name].rows(runner.scale) if name in NAMES else []
    priors = [row.prior for row in rows if row.prior]
    prior = priors[0] if priors and "bernoulli" not in priors else "bernoulli"
    settings, source = runner.settings(runner.tokenizer_of(prior), prior, 0), open_images(runner.data)
    held_out = settings.data.held_out_of(len(source))
    train = len(source) - round(held_out * len(source) if held_out < 1 else held_out)
    yield f"{work(runner, name, seeds)}; one of them:"
    for what, much in describe(settings, images=max(1, train), num_classes=len(source.classes)):
        yield f"  {what:<34}{much}"
    if priors:
        drawn = seeds if seeds > 1 else SAMPLING_SEEDS
        yield f"and samples {len(priors)} × {drawn} × {runner.scale.samples:,} images."
