"""A scale of seconds."""

from __future__ import annotations

from dataclasses import replace

from bld.experiments.scales import DIGITS

TINY = replace(
    DIGITS,
    name="tiny",
    overrides=(
        *DIGITS.overrides,
        "tokenizer.base_channels=8",
        "tokenizer.embed_dim=8",
        "tokenizer_training.steps=4",
        "tokenizer_training.previews=1",
        "prior.dim=32",
        "prior.depth=1",
        "prior.heads=2",
        "prior_training.steps=4",
        "prior_training.previews=1",
    ),
    samples=24,
    classifier_steps=3,
    cas=("small", 5),
    trial_steps=4,
)
