"""Train everything on a folder of images: tokenizer, codes, prior, samples and report. The same command goes on."""

from __future__ import annotations

import argparse
from shlex import quote

from bld.cli.common import add_training_arguments, recipe_from, say

HELP = "images → tokenizer → codes → prior → samples → report, in one command"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --out, --preset, --budget, --tokenizer, --init-from, key=value."""
    add_training_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train, then write the report."""
    with recipe_from(args) as recipe:
        recipe.train()
        if not recipe.processes.is_main:
            return
        from bld.report.page import write_report

        path = write_report(recipe.run, seed=recipe.settings.seed, say=say)
    say(f"Open {path} to see the result; bld sample {quote(str(recipe.run.path))} makes more images.")
