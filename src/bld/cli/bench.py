"""Run the benchmarks of a checkout, one after the other: how fast this machine is, against its own limits."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from bld.cli.common import say
from bld.errors import SettingError, did_you_mean

HELP = "measure speed on this machine, against its own limits"
SPEED = (
    "startup", "forward", "sampling", "prior_step", "tokenizer", "online", "per_image", "compile", "growth", "host",
)  # fmt: skip
NO_BENCHMARKS = ("measuring", "steps", "public")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which benchmarks, and where their JSON goes."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run (default: those of speed: {', '.join(SPEED)})"
    )
    parser.add_argument("--list", action="store_true", help="say what each benchmark asks, and run none")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where the JSON goes (default: beside the scripts)")


def run(args: argparse.Namespace) -> None:
    """Each in a process of its own; one that fails does not stop the others."""
    folder = _folder()
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem not in NO_BENCHMARKS)
    for name in args.names:
        if name not in known:
            raise SettingError(f"There is no benchmark '{name}'.{did_you_mean(name, known)}")
    if args.list:
        for name in known:
            say(f"{name:<14}{_question(folder / f'{name}.py')}")
        return
    failed = []
    for name in args.names or SPEED:
        say(f"\n== {name}: {_question(folder / f'{name}.py')}")
        where = ["--out", str(args.out.resolve())] if args.out is not None and name in SPEED else []
        started = time.monotonic()
        status = subprocess.run([sys.executable, str(folder / f"{name}.py"), *where], check=False).returncode
        if status:
            failed.append(name)
        say(f"== {name}: {'failed' if status else 'done'} after {time.monotonic() - started:.0f} s")
    if failed:
        raise SettingError(f"{len(failed)} benchmarks failed, and say why above: {', '.join(failed)}.")


def _folder() -> Path:
    """The checkout's benchmarks: of the present folder, or of the one this package is run from."""
    for folder in (Path("benchmarks"), Path(__file__).resolve().parents[3] / "benchmarks"):
        if (folder / "measuring.py").is_file():
            return folder.resolve()
    raise SettingError("The benchmarks come with the source, not with the installed package: run this in a checkout.")


def _question(script: Path) -> str:
    """The first line of its docstring."""
    return script.read_text(encoding="utf-8").split("\n", 1)[0].strip('"')
