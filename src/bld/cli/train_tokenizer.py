"""Train the tokenizer alone: images ⇄ bits."""

from __future__ import annotations

import argparse

from bld.cli.common import add_training_arguments, recipe_from

HELP = "stage one alone: images ⇄ bits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --out, --preset, --budget, --init-from, key=value."""
    add_training_arguments(parser, stages=("tokenizer",))


def run(args: argparse.Namespace) -> None:
    """Train stage one."""
    with recipe_from(args) as recipe:
        recipe.train_tokenizer(recipe.budget_seconds)
    recipe.say(f"The tokenizer is in {recipe.run.tokenizer}; next: bld encode --out {recipe.run.path}")
