"""What a command writes never takes the place of a file that another program or a person made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from bld.errors import SettingError

MODEL_KEYS = ("_bld_version", "_class_name")
NOTE_KEYS = {"model", "seed", "steps", "temperature"}  # of the note beside samples


def refuse_foreign(paths: Iterable[Path]) -> None:
    """Refuse to overwrite what no command of ours has written.

    Args:
        paths: the files that are to be written.

    Raises:
        SettingError: for the first of the paths that is a folder, or that is there and is not ours.
    """
    for path in paths:
        if path.is_dir():
            raise SettingError(f"{path} is a folder where a file is to be written: choose another --out.")
        if path.exists() and not is_ours(path):
            raise SettingError(f"{path} is there already, and bld did not write it: choose another --out.")


def refuse_foreign_folder(folder: Path, written: Iterable[str]) -> None:
    """Refuse to write a model into a folder where it would replace files that bld has not written.

    Args:
        folder: where a model is to be written.
        written: the names that are to be written there.

    Raises:
        SettingError: if one of these is in the folder, and no model of ours is.
    """
    if not any(is_ours(folder / name) for name in ("config.json", "model_index.json")):
        for name in written:
            if (folder / name).exists():
                raise SettingError(
                    f"{folder / name} is there already, and bld did not write it: choose another folder."
                )


def is_ours(path: Path) -> bool:
    """Whether a file says that bld wrote it; one that cannot be read does not."""
    try:
        if path.suffix == ".png":
            return _is_our_png(path)
        if path.suffix == ".json":
            return _is_our_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    return False


def _is_our_png(path: Path) -> bool:
    from bld.data.decoding import png_texts

    return any(text.startswith(b"Software\0bld") for text in png_texts(path.read_bytes()))


def _is_our_json(content: object) -> bool:
    if not isinstance(content, dict):
        return False
    versions = content.get("versions")
    said = any(key in content for key in (*MODEL_KEYS, "bld")) or (isinstance(versions, dict) and "bld" in versions)
    return said or content.keys() >= NOTE_KEYS
