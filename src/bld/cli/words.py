"""What single words of the command line mean: times, paths, and files that are named."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from bld.errors import DataError, SettingError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Seconds from "90", "45s", "30m", "2h" or "1h30m"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    whole = "".join(number + unit for number, unit in parts) == text
    if not parts or not whole or (len(parts) > 1 and not all(unit for _, unit in parts)):
        raise SettingError(f"'{text}' is not a time: write 90s, 30m, 2h or 1h30m.")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise SettingError(f"A time budget is above 0, not '{text}'.")
    return seconds


def expanded(path: Path) -> Path:
    """The path with the home directory for a ~ or ~name at its beginning; as it is where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def where(text: str) -> str:
    """A folder, file or name on the hub, as `expanded`."""
    return str(expanded(Path(text))) if text.startswith("~") else text


def refuse_other_ending(out: Path | None, ending: str) -> None:
    """`SettingError` for a file to be written whose name does not end so; None is no file that was asked for."""
    if out is not None and out.suffix != ending:
        raise SettingError(f"--out {out} is written as {ending[1:].upper()}: give it the ending {ending}.")


def lines_of(path: Path) -> list[str]:
    """The lines of a file of prompts, but for empty ones; `DataError` where there are none."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The prompts {path} cannot be read ({error}): give a text file, a prompt a line.") from error
    if not any(lines):
        raise DataError(f"{path} holds no prompt: write one a line.")
    return [line for line in lines if line]


def vectors_of(path: Path) -> Any:
    """The array (n, V) of a file; `DataError` where it holds another or none."""
    import numpy as np

    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as vectors ({error}): save them with numpy as .npy.") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim not in (1, 2) or not vectors.size:
        raise DataError(f"{path} does not hold one array of vectors, (V,) or (n, V).")
    return np.atleast_2d(vectors)
