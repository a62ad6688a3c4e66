"""Which settings of a run a measurement depends on: they are in its key, and a run that is taken agrees in them."""

from __future__ import annotations

from typing import Any

from bld.training.settings import Settings, leaves, settings_tree

OF_BUDGETS = ("sizes_by_budget", "tokenizer_share")  # settings of no effect where steps are said
WHERE = "data.location"  # the same images may lie elsewhere; what they are is asked of their contents
OF_THE_TOKENIZER = ("seed", "mixed_precision", "compile", "tokenizer.", "tokenizer_training.", "objective.", "data.")
OF_A_PRIOR = ("prior", "diffusion.", "sampling.")
OF_SAMPLES = ("sampling.",)
NO_MATTER = (*OF_BUDGETS, WHERE, "preset", "trackers", "sampling.", "data.workers", "data.memory_limit_gb")
SINCE = {"tokenizer.bits_per_value": 1}
"""Settings that have not always been, with what held before: at that value no part of a key, so that figures of then
are found.
"""
NOTED = ("log_every_steps", "previews", "checkpoint_seconds")  # of a training: what is looked at on the way


def agree(theirs: Settings, ours: Settings, besides: tuple[str, ...]) -> bool:
    """Whether two runs have the same settings, `besides` left out."""
    pairs = zip(*(leaves(settings_tree(settings)) for settings in (theirs, ours)), strict=True)
    return all(one == other or one[0].startswith((*besides, *OF_BUDGETS, WHERE)) for one, other in pairs)


def what_counts(settings: Settings, only: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """The settings, defaults and the preset's included, that change what is made; `only` those that begin so."""
    return {
        name: value
        for name, value in leaves(settings_tree(settings))
        if name.startswith(only)
        and not name.startswith(NO_MATTER)
        and name.rpartition(".")[2] not in NOTED
        and (name, value) not in SINCE.items()
    }
