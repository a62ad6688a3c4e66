"""What a run of an experiment is given by another: its tokenizer, list of images and codes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bld.io.files import read_json, write_json
from bld.training.code_cache import HEADER
from bld.training.run_folder import RunFolder


def hand_on(base: RunFolder, run: RunFolder, codes: bool = True) -> None:
    """Give a run another's tokenizer, list of images and, unless it draws its own, codes, if it has no tokenizer yet.

    The tokenizer comes last and whole, so that what was interrupted is done again.
    """
    if run.tokenizer.is_dir():
        return
    run.record("tokenizer", **base.progress()["tokenizer"])
    write_json(run.data, read_json(base.data))
    if codes and (base.codes / HEADER).is_file():
        _copy_whole(base.codes, run.codes, os.link)  # of which a file is never changed, only replaced
    _copy_whole(base.tokenizer, run.tokenizer, shutil.copy2)


def _copy_whole(folder: Path, target: Path, copy: Callable[..., Any]) -> None:
    """Copy a folder aside, then rename it to the target, in whose place there is no more than an older copy."""
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(folder, aside, copy_function=copy)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
