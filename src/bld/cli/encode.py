"""Encode the run's images to the code cache; a cache that still fits is kept, a stale one is made again."""

from __future__ import annotations

import argparse
from shlex import quote

from bld.cli.common import add_training_arguments, recipe_from

HELP = "images → the cache of bits, or of how probable each is, that the prior is trained on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --out, --preset, key=value."""
    add_training_arguments(parser, budget=False, stages=())


def run(args: argparse.Namespace) -> None:
    """Encode."""
    with recipe_from(args) as recipe:
        cache = recipe.encode()
    next_one = f"bld train-prior --out {quote(str(recipe.run.path))}"
    rows = len(cache) * cache.views
    recipe.say(
        f"{len(cache):,} images, {cache.views} views each, as codes of {cache.shape}: {rows:,} × "
        f"{cache.key.row_bytes:,} bytes in {recipe.run.codes}; next: {next_one}"
    )
