"""What experiments have measured and drawn, each in a file named after a key of all that made it.

The files alone are enough to go on with elsewhere: what is kept needs no network that it was measured of.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from bld.experiments.page import machine, save_small
from bld.io.files import read_json, write_json

NOT_NOTED = "one that was not noted"


def kept_metrics(
    folder: Path, name: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    """The metrics computed under this key, from disk if they are there, and the machine that computed them."""
    path = _path(folder, name, key, ".json")
    if not path.is_file():
        started = time.monotonic()
        metrics = compute()
        seconds = round(time.monotonic() - started, 1)
        write_json(path, {"key": key, "figures": metrics, "seconds": seconds, "machine": machine()})
    kept = read_json(path)
    return kept["figures"], kept.get("machine", NOT_NOTED)


def kept_picture(folder: Path, name: str, key: dict[str, Any], draw: Callable[[], Image.Image]) -> Image.Image:
    """The picture drawn under this key, from disk if it is there."""
    path = _path(folder, name, key, ".png")
    if not path.is_file():
        save_small(draw(), path)
    with Image.open(path) as image:
        return image.convert("RGB")


def _path(folder: Path, name: str, key: dict[str, Any], suffix: str) -> Path:
    text = json.dumps(key, sort_keys=True, default=str)
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{suffix}"
