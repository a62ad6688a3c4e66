"""The preset that suits some images, where nobody names one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bld.errors import DataError, SettingError

if TYPE_CHECKING:
    from PIL import Image

LOOKED_AT = 16


class Looked(NamedTuple):
    """What up to 16 of the images are, evenly spread, without those that cannot be read.

    Attributes:
        names: theirs.
        sides: the shorter side of each, in pixels.
        are_grey: whether none of them has a colour.
    """

    names: list[str]
    sides: list[int]
    are_grey: bool


class Choice(NamedTuple):
    """A preset for some images.

    Attributes:
        name: of the preset.
        overrides: what is to be said over it, as `key=value`.
        sentence: which tells users of it.
    """

    name: str
    overrides: list[str]
    sentence: str


def choose_preset(data: str | None, image_size: int | None, settings: Sequence[str]) -> Choice:
    """The shipped preset nearest to what the images are, or to the size at which a tokenizer wants them.

    Large JPEGs are taken for photographs, which may be mirrored and cropped, all else for drawings, which may not.
    Where a preset for small images mirrors them, that is said, and greyscale ones, as letters are, it mirrors not.

    Args:
        data: where the images are.
        image_size: at which a given tokenizer wants them, in pixels; None without one.
        settings: what the user says over the preset, as `key=value`.

    Raises:
        SettingError: if no images are named.
        DataError: if none of those that are looked at can be read.
    """
    if data is None:
        raise SettingError("No images are named: add --data with a folder, zip, tar, or the word digits.")
    from bld.training.config import load_settings

    looked = None if data == "digits" or image_size is not None else look_at(data, settings)
    name = "digits" if data == "digits" else _name(looked, image_size)
    begin = f"No preset was named: {name} suits these images"
    if not load_settings(name).data.flip or any(word.startswith("data.flip=") for word in settings):
        return Choice(name, [], f"{begin}; choose another with --preset.")
    if (looked or look_at(data, settings)).are_grey:
        told = "As they are greyscale, like letters, they are not shown mirrored, which data.flip=true would do."
        return Choice(name, ["data.flip=false"], f"{begin}; choose another with --preset. {told}")
    return Choice(
        name, [], f"{begin} and also shows them mirrored, which data.flip=false ends; choose another with --preset."
    )


def _name(looked: Looked | None, image_size: int | None) -> str:
    large = "emoji64"
    if looked is not None:
        jpegs = sum(name.lower().endswith((".jpg", ".jpeg")) for name in looked.names)
        large = "photos64" if 2 * jpegs > len(looked.names) else large
        image_size = sorted(looked.sides)[len(looked.sides) // 2]
    assert image_size is not None
    return "digits" if image_size < 24 else "cifar10" if image_size < 56 else large


def look_at(data: str, overrides: Sequence[str] = ()) -> Looked:
    """What some of the images are; `DataError` where none of them can be read.

    overrides: of them that of the largest image that is read counts here.
    """
    from bld.data import open_images
    from bld.data.verifying import bare_reason
    from bld.training.config import load_settings

    most = load_settings("digits", overrides=[word for word in overrides if word.startswith("data.max_megapixels=")])
    source = open_images(data, labels="none", max_pixels=most.data.max_pixels)
    found, why = Looked([], [], True), ""
    for row in sorted({len(source) * i // LOOKED_AT for i in range(LOOKED_AT)}):
        try:
            image = source.read(row)
        except DataError as error:  # a few unreadable images are left out later
            why = why or f"{source.names[row]}: {bare_reason(source, source.names[row], str(error))}"
            continue
        are_grey = found.are_grey and _is_grey(image)
        found = Looked([*found.names, source.names[row]], [*found.sides, min(image.size)], are_grey)
    if not found.names:
        raise DataError(f"None of the images of {data} that were tried can be read; of the first, {why}.")
    return found


def _is_grey(image: Image.Image) -> bool:
    import numpy as np

    from bld.data.rgb import to_rgb

    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")):
        return True
    pixels = np.asarray(to_rgb(image))
    return bool((pixels == pixels[..., :1]).all())
