"""Write the run's report page: one self-contained HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from bld.cli.common import say

HELP = "write RUN/report.html again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run and a seed."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the images on the page (default 0)")


def run(args: argparse.Namespace) -> None:
    """Write it and say where."""
    from bld.report.page import write_report
    from bld.training.run_folder import RunFolder

    say(f"Written: {write_report(RunFolder(args.run_folder), seed=args.seed, say=say)}")
