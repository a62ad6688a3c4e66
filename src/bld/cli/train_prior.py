"""Train the prior alone: the distribution of the codes."""

from __future__ import annotations

import argparse
from shlex import quote

from bld.cli.common import add_training_arguments, recipe_from

HELP = "stage two alone: the Bernoulli diffusion over codes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --out, --preset, --budget, --tokenizer, --init-from, key=value."""
    add_training_arguments(parser, stages=("prior",))


def run(args: argparse.Namespace) -> None:
    """Encode if need be, then train stage two."""
    with recipe_from(args) as recipe:
        recipe.train_prior(recipe.budget_seconds)
    run = quote(str(recipe.run.path))
    recipe.say(f"The prior is in {recipe.run.prior}; next: bld sample {run}, bld report {run}")
