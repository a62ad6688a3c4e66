"""Say what a preset or a run is and costs, before anything is trained: sizes, parameters, FLOPs, cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import say

HELP = "sizes, parameters, FLOPs and cache of a preset or run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A run or preset, how many images, and key=value words."""
    parser.add_argument("what", metavar="RUN|PRESET", help="folder of a run, a preset's name, or a YAML file")
    parser.add_argument("--images", type=int, default=100_000, help="images to state the cache for (default 100,000)")
    parser.add_argument("--classes", type=int, default=0, help="classes of a preset's data (default 0)")
    parser.add_argument("--show-settings", action="store_true", help="print every setting as YAML")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="single settings, for example prior.dim=256")


def run(args: argparse.Namespace) -> None:
    """Print a table."""
    from bld.training.cost import describe
    from bld.training.run_folder import RunFolder
    from bld.training.settings import load_settings, settings_tree

    folder = RunFolder(Path(args.what))
    if folder.has_settings():
        settings = load_settings(base=settings_tree(folder.settings()), words=args.settings)
    else:
        settings = load_settings(preset=args.what, words=args.settings)
    for name, value in describe(settings, args.images, args.classes):
        say(f"{name:<34}{value}")
    if args.show_settings:
        import yaml

        say("\n" + yaml.safe_dump(settings_tree(settings), sort_keys=False))
