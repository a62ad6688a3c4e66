"""From the place a user names to an ImageSource."""

from __future__ import annotations

from pathlib import Path

from bld.errors import DataError
from bld.images.archives import ZipSource, open_tar
from bld.images.digits import DigitsSource
from bld.images.folder import FolderSource
from bld.images.source import ImageSource


def open_images(location: str | Path) -> ImageSource:
    """The images of a folder, a .zip, a .tar, .tar.gz or .tgz archive, or the word `digits`.

    Folders are searched through. The class of an image is its first-level folder, provided that every image
    lies in one and there are at least two; in an archive, a single folder wrapping everything does not count.
    Hidden files and files that do not end like images are ignored. (A folder called `digits` is opened by its
    absolute path.)

    Raises DataError when there is nothing, no archive, a broken archive or no image in it, and
    MissingPackageError for `digits` without scikit-learn.
    """
    text = str(location)
    if text == "digits":
        return DigitsSource()
    path = Path(text).expanduser()
    if path.is_dir():
        return FolderSource(text, path)
    if not path.exists():
        raise DataError(f"There is nothing at {text}: give a folder, a .zip or .tar archive, or 'digits'.")
    name = path.name.lower()
    try:
        if name.endswith(".zip"):
            return ZipSource(text, path)
        if name.endswith((".tar", ".tar.gz", ".tgz")):
            return open_tar(text, path)
    except OSError as error:
        raise DataError(f"Cannot read {text}: {error.strerror}.") from error
    raise DataError(f"{text} is neither a folder nor a .zip, .tar, .tar.gz or .tgz archive of images.")
