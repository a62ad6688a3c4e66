"""What a command writes never takes the place of a file that another program or a person made."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from bld.errors import SettingError
from bld.io.signed import is_as_signed

PIPELINE, CLASSIFIER = "BinaryLatentDiffusionPipeline", "FeatureClassifier"
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


def refuse_made_otherwise(note: Path, settings: dict[str, Any], images: Iterable[Path], auto: str = "") -> None:
    """Take images as made already only beside a note that says that these settings made them.

    Args:
        note: the JSON beside the images.
        settings: everything that decides what they look like.
        images: their files.
        auto: what the precision "auto" comes to here: older notes do not tell, nor the process, which was the run's
            own.

    Raises:
        SettingError: if the note tells other settings, or there is none and one of the images is there.
    """
    from bld.io.files import read_json

    if not note.is_file():
        there = next((path for path in images if path.exists()), None)
        if there is not None:
            raise SettingError(
                f"{there} is there already, and nothing beside it says how it was made: choose another --out."
            )
        return
    made, wanted = {"process": settings["process"], **read_json(note)}, dict(settings)
    if made.get("precision") == "auto":
        made["precision"] = auto
    made, wanted = ({name: json.dumps(value, sort_keys=True) for name, value in one.items()} for one in (made, wanted))
    other = [name.replace("_", " ") for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
    if other:
        raise SettingError(
            f"{note.parent} holds images made otherwise ({', '.join(other)}; see {note}): choose another --out."
        )


def refuse_foreign_folder(folder: Path, written: Iterable[str], kinds: Collection[str] = (PIPELINE,)) -> None:
    """Refuse to write a model into a folder where it would replace a run, or files that bld has not written.

    Args:
        folder: where a model is to be written.
        written: the names that are to be written there.
        kinds: class names of the models of ours whose place it may take.

    Raises:
        SettingError: if the folder is a run, or one of the names is in it and no such model is, or a picture or JSON of
            another program has the name, or a page that was changed since bld wrote it.
    """
    written = [*written]
    if "tokenizer" in written and ((folder / "config.yaml").exists() or (folder / "checkpoints").exists()):
        raise SettingError(f"{folder} is the folder of a run, whose model would be replaced: choose another folder.")
    ours = any(_class_of(folder / name) in kinds for name in ("config.json", "model_index.json"))
    for path in (folder / name for name in written):
        if not path.exists() or (ours and (path.suffix not in (".png", ".json", ".md") or is_ours(path))):
            continue
        if path.suffix == ".md" and ours:
            raise SettingError(
                f"{path} is not, or no longer, what bld wrote, and would be replaced: move it away, or choose another "
                "folder."
            )
        raise SettingError(f"{path} is there already, and bld did not write it: choose another folder.")


def _class_of(path: Path) -> str | None:
    """The class of the model that a JSON of ours describes."""
    return json.loads(path.read_text(encoding="utf-8")).get("_class_name") if is_ours(path) else None


def is_ours(path: Path) -> bool:
    """Whether a file says that bld wrote it, and a page that nobody changed it; one that cannot be read does not."""
    try:
        if path.suffix == ".png":
            return _is_our_png(path)
        if path.suffix == ".json":
            return _is_our_json(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".md":
            return is_as_signed(path.read_bytes())
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
    said = any(key in content for key in ("_bld_version", "bld")) or (isinstance(versions, dict) and "bld" in versions)
    return said or content.get("_class_name") == CLASSIFIER or content.keys() >= NOTE_KEYS
