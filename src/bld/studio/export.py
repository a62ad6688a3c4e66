"""What a visitor keeps: pictures as PNG with the settings that made them inside, and all of it as one archive."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bld._version import __version__
from bld.io.files import as_utf8
from bld.pipeline import class_words, option_words

if TYPE_CHECKING:
    from bld.studio.made import Made
    from bld.studio.model import Model

TEXT_KEY = "bld"  # of the PNG's text chunk
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same pictures make the same archive


def described(
    model: Model, task: str, python: str, call: Mapping[str, Any], posterior: str | None = None
) -> dict[str, Any]:
    """All that decides the pictures, ready for JSON.

    A generation that `bld sample` can repeat comes with that command.

    Args:
        model: what made them.
        task: its name, such as "generate".
        python: the expression that makes them again, with `call` for the arguments.
        call: the arguments; none where one call does not make them.
        posterior: that they were sampled with; None is the model's own.
    """
    settings: dict[str, Any] = {
        "task": task,
        "bld": __version__,
        "run": model.name,
        "model": model.fingerprint,
        "precision": model.precision,
        "device": str(model.pipe.device),
        "posterior": posterior or model.posterior,
        "python": f"with {_autocast(model)}: {python}" if model.precision == "bf16" else python,
        "call": dict(call),
    }
    command = _command(model, call) if task == "generate" and settings["posterior"] == model.posterior else None
    if command is not None:
        settings["command"] = command
    return settings


def _autocast(model: Model) -> str:
    return f'torch.autocast("{model.pipe.device.type}", torch.bfloat16)'


def _command(model: Model, call: Mapping[str, Any]) -> str | None:
    """The `bld sample` that makes the same pictures; None where no words name their classes."""
    words = ["bld", "sample", model.run, "--num", str(call["num_images"]), "--seed", str(call["generator"])]
    if call["num_inference_steps"] is not None:
        words += ["--steps", str(call["num_inference_steps"])]
    words += ["--temperature", repr(call["temperature"]), "--guidance-scale", repr(call["guidance_scale"])]
    if model.classes:
        labels = call["class_labels"]
        labels = [labels] if isinstance(labels, int) else labels
        classes = class_words(labels and list(dict.fromkeys(labels)), model.classes)
        if classes is None:
            return None
        words += option_words("--classes", classes)
    if "prompt" in call:
        words += option_words("--prompt", call["prompt"])
    return shlex.join([*words, "--precision", model.precision])


def png(image: Image.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """The picture as a PNG file; its settings stand in the text chunk "bld" as JSON."""
    buffer = io.BytesIO()
    info = PngInfo()
    if settings is not None:
        info.add_itxt(TEXT_KEY, as_utf8(json.dumps(settings, ensure_ascii=False)).decode())
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def pretty(settings: Mapping[str, Any]) -> bytes:
    """Settings as a JSON file."""
    return as_utf8(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def archive(made: Made) -> bytes:
    """Pictures, settings.json and further files as a zip; the same ones make the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        pack.writestr(zipfile.ZipInfo("settings.json", EPOCH), pretty(made.settings))
        for i, picture in enumerate(made.pictures):
            if f"{picture.name}.png" not in made.files:
                pack.writestr(zipfile.ZipInfo(f"{picture.name}.png", EPOCH), png(picture.image, numbered(made, i)))
        for name, data in made.files.items():
            pack.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()


def numbered(made: Made, index: int) -> dict[str, Any]:
    """The settings of one of the pictures: those of all, and which it is."""
    return {**made.settings, "picture": made.pictures[index].name, "index": index}
