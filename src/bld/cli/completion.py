"""Print a script that completes commands, options, presets and settings in your shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from bld.errors import MissingPackageError

HELP = "a script that completes bld's words in bash, zsh or tcsh"
FOLDERS = {"RUN", "DIR", "FOLDER"}
FILES = {"WHERE", "RUN|PRESET", "WHICH"}

# A setting's value follows its "=" at once.
BASH_WITHOUT_SPACE = """
_bld_words() { _shtab_bld "$@"; case "${COMPREPLY[0]-}" in *=) compopt -o nospace ;; esac; }
complete -o filenames -F _bld_words bld
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "tcsh"], help="bash, zsh or tcsh")


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise MissingPackageError(
            "Completion scripts are made by shtab: pip install 'binary-latent-diffusion[completion]'."
        ) from error
    from bld.cli import build_parser
    from bld.training.config import known_keys, preset_names

    parser, settings = build_parser(), [f"{key}=" for key in known_keys()]
    for action in _actions(parser):
        if action.metavar == "key=value":
            if args.shell == "zsh":
                action.complete = {"zsh": "_bld_settings"}  # type: ignore[attr-defined]
            else:
                action.choices = settings
        elif action.dest == "preset":
            action.choices = preset_names()
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in FILES or getattr(action.type, "__name__", "") == "Path":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    zsh = f"_bld_settings() {{ compadd \"$@\" -S '' -- {' '.join(settings)} }}"
    script = shtab.complete(parser, args.shell, preamble=zsh if args.shell == "zsh" else "")
    print(script + (BASH_WITHOUT_SPACE if args.shell == "bash" else ""))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of every command."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
