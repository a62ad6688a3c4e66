"""The command line: one command per file; the only place that parses arguments and prints.

Each command module has HELP, `add_arguments(parser)` and `run(args)`, and loads torch only when it runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bld._version import __version__
from bld.cli.words import expanded
from bld.errors import UserError, did_you_mean

COMMANDS = {
    "train": "bld.cli.train",
    "train-tokenizer": "bld.cli.train_tokenizer",
    "encode": "bld.cli.encode",
    "train-prior": "bld.cli.train_prior",
    "sample": "bld.cli.sample",
    "inpaint": "bld.cli.inpaint",
    "reconstruct": "bld.cli.reconstruct",
    "report": "bld.cli.report",
    "evaluate": "bld.cli.evaluate",
    "neighbours": "bld.cli.neighbours",
    "train-features": "bld.cli.train_features",
    "reproduce": "bld.cli.reproduce",
    "convert": "bld.cli.convert",
    "share": "bld.cli.share",
    "info": "bld.cli.info",
    "studio": "bld.cli.studio",
    "completion": "bld.cli.completion",
    "demo": "bld.cli.demo",
}

FROM_CHECKPOINT = "The same command goes on from the last checkpoint."
MAKES_MISSING = "The same command makes what is missing."
STOPPED = {  # what an interruption leaves, by the command; others keep nothing
    **dict.fromkeys(("train", "train-tokenizer", "train-prior", "demo", "reproduce"), FROM_CHECKPOINT),
    **dict.fromkeys(("sample", "inpaint"), MAKES_MISSING),
    "encode": "The same command goes on with the codes that are missing.",
    "evaluate": "Features of samples are kept, a thousand at a time; the same command begins all else anew.",
    "share": "What was sent stays where it is; the same command sends all of it.",
    "studio": "",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message[0].upper()}{message[1:].rstrip('.')}. See {self.prog} --help.\n")


class _Versions(argparse.Action):
    """Prints what a report of a defect should begin with; it alone of the main options loads torch."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="versions of bld and torch, and the device")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import torch

        device = "cpu"
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            device = f"cuda ({f'{count} × ' if count > 1 else ''}{torch.cuda.get_device_name()})"
        print(f"bld {__version__}, torch {torch.__version__}, device: {device}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what the user can fix, 130 when interrupted."""
    # Threads that spin while a neighbour holds their core cost up to 10 times the work; without spinning nothing is
    # lost on a free machine. Read when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a sign prints another, and goes on
            stream.reconfigure(errors="replace")
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        meant = did_you_mean(command, COMMANDS)
        print(f"bld: There is no command '{command}'.{meant} See bld --help.", file=sys.stderr)
        return 2
    parser = build_parser(only=command)
    lost = next((word for word in argv if word.startswith("--") and word.endswith("=--")), None)
    if lost is not None:  # argparse would take the two dashes for no value at all
        parser.error(f"'{lost}' gives no value")
    args, rest = parser.parse_known_args(argv)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest and (len(settings) < len(rest) or not hasattr(args, "settings")):
        parser.error(f"'{next((w for w in rest if w not in settings), rest[0])}' is not an option of this command")
    if settings:  # argparse takes key=value words only in one place; ours may stand anywhere
        args.settings = [*args.settings, *settings]
    for name, value in vars(args).items():
        if isinstance(value, Path):  # shells leave the ~ of --out=~/runs as it is
            setattr(args, name, expanded(value))
    who = f"bld (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else "bld"
    try:
        args.run(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0
        if args.debug:
            raise
        print(f"{who}: {_about(error, command)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if args.debug:
            raise
        if who == "bld":
            left = STOPPED.get(command or "", "Nothing was kept.")
            print(f"bld: Stopped. {left}".rstrip(), file=sys.stderr)
        return 130
    finally:
        if "bld.runtime.distributed" in sys.modules:
            sys.modules["bld.runtime.distributed"].leave()
    return 0


def _reader_left() -> bool:
    """Whether what reads our output has read enough, as in `bld info | head -1`; what is left goes nowhere then."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _about(error: OSError, command: str | None) -> str:
    """One sentence on what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        intact = "; the last checkpoint is intact" if STOPPED.get(command or "") == FROM_CHECKPOINT else ""
        return f"No space is left on the disk{intact}: free some and repeat the command."
    where = f" {error.filename}" if error.filename else ""
    return f"The system refused{where}: {error.strerror or error}."


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; with a command named, the other commands are left out, as they will not be asked."""
    parser = _Parser(
        prog="bld",
        description="Binary Latent Diffusion: train on a folder of images, generate, inpaint, reconstruct.",
        epilog="Start with: bld demo, or bld train --data FOLDER --out RUN --budget 30m",
    )
    parser.add_argument("--version", action=_Versions)
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module_name in COMMANDS.items():
        if only not in (None, name):
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
