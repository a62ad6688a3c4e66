"""Repeat an experiment of the paper: train what it needs, measure, and write a page with the paper's numbers beside."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from bld.cli.common import say
from bld.errors import SettingError, did_you_mean

HELP = "repeat a table or figure of the paper at a scale of your choice"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What, at which scale, from which images, where to."""
    parser.add_argument(
        "name", metavar="NAME", help="table1 … table7, figure4, 5, 7, A, M, N, O, …; or list, to see them all"
    )
    parser.add_argument("--scale", default="digits", help="digits (default), cifar10, emoji64, emoji128, or paper")
    parser.add_argument(
        "--faithful", action="store_true", help="the paper's method to the letter, which the scale paper always takes"
    )
    parser.add_argument(
        "--preset",
        default="",
        metavar="NAME",
        help="at the scale paper, another data set of the experiment: ffhq256, …",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trained networks per row (default 3)")
    parser.add_argument("--data", default="", metavar="WHERE", help="the images, for scales other than digits")
    parser.add_argument("--test-data", default="", metavar="WHERE", help="images nobody is trained on, to measure with")
    parser.add_argument(
        "--features", default="", metavar="WHICH", help="another judge: inception, dinov2, a file or folder"
    )
    parser.add_argument("--out", type=Path, default=Path("reproduce"), metavar="DIR", help="trained runs and metrics")
    parser.add_argument("--pages", type=Path, metavar="DIR", help="folder of the pages (default DIR/pages)")
    parser.add_argument(
        "--judge-again", action="store_true", help="judge the numbers of a page that is there by today's rules"
    )
    parser.add_argument("--yes", action="store_true", help="begin a paper-scale experiment without asking")


def run(args: argparse.Namespace) -> None:
    """Run it and say where the page is."""
    from bld.experiments import reproduce
    from bld.experiments.runner import Runner
    from bld.experiments.scales import scale_for

    if args.name == "list":
        width = max(map(len, reproduce.titles())) + 2
        for name, title in reproduce.titles().items():
            say(f"{name:<{width}}{title}")
        return
    if args.name not in reproduce.titles():
        raise SettingError(f"There is no experiment '{args.name}'.{did_you_mean(args.name, reproduce.titles())}")
    if args.seeds < 1:
        raise SettingError(f"--seeds is at least 1, not {args.seeds}.")
    scale = scale_for(args.scale, args.name, args.faithful, args.preset)
    pages = args.pages or args.out / "pages"
    make_runner = partial(Runner, scale, args.out, say, args.data, args.test_data, args.features)
    if args.judge_again:
        say(f"Judged again: {reproduce.again(args.name, scale, pages, make_runner)}")
        return
    runner = make_runner()
    if scale.name != "paper":
        say(f"{reproduce.work(runner, args.name, args.seeds)}; what is there already is taken.")
    else:
        for line in reproduce.cost(runner, args.name, args.seeds):
            say(line)
        if not args.yes:
            raise SettingError("This is a paper-scale experiment: repeat the command with --yes to begin.")
    page = reproduce.reproduce(runner, args.name, args.seeds, pages, _command(args))
    say(f"Written: {page}")


def _command(args: argparse.Namespace) -> str:
    """The command as the page shows it, without the folders of this machine."""
    words = ["bld", "reproduce", args.name, "--scale", args.scale, "--seeds", str(args.seeds)]
    words += ["--faithful"] if args.faithful else []
    words += ["--preset", args.preset] if args.preset else []
    for option, value in (("--data", args.data), ("--test-data", args.test_data), ("--features", args.features)):
        words += [option, Path(value).name] if value else []
    return " ".join(words)
