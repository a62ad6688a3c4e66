"""From the place a user names to an ImageSource."""

from __future__ import annotations

from pathlib import Path

from bld.data.decoding import MAX_PIXELS
from bld.data.labels import relabel
from bld.data.sources.base import OPENERS, ImageSource
from bld.errors import DataError


def open_images(
    location: str | Path, *, labels: str = "auto", index_to: Path | None = None, max_pixels: int = MAX_PIXELS
) -> ImageSource:
    """The images of a folder, of archives, of a data set of the hub, or the word `digits`.

    Archives are .zip, .tar, .tar.gz and .tgz; a folder of .tar files, or a pattern such as `train-{000..099}.tar`, is
    read as WebDataset shards. `owner/name` or `owner/name:split` that does not exist here is a data set of the hub
    (also `hf:name` and `hf:name:split`), as is a folder of .parquet files or one made by `save_to_disk`.

    Folders are searched recursively. The class of an image is its top-level folder, if every image is in one and there
    are at least two; in an archive, a single folder around everything is skipped. Hidden files, and files without the
    ending of an image, are ignored.

    Args:
        location: where the images are. (For a folder that is itself called `digits`, give its absolute path.)
        labels: "auto" takes classes from a table such as metadata.csv beside the images if one has them, else from the
            folders (or the data set); "folders"; "none"; or the path of a table.
        index_to: a folder to cache the list of images in, so that a large collection is searched only once.
        max_pixels: largest image, in pixels; a larger one counts as unreadable.

    Returns:
        The images, read one by one; `notes` says which files were not used.

    Raises:
        DataError: if there is nothing, no archive, a broken archive or no image in it, or a table has no class for an
            image.
        MissingPackageError: for `digits` without scikit-learn, and data sets without `datasets`.
    """
    source = _open(str(location), index_to)
    source.max_pixels = max_pixels
    relabel(source, labels)
    return source


def _open(text: str, index_to: Path | None) -> ImageSource:
    path = Path(text).expanduser()
    try:
        for _, opener in sorted(OPENERS, key=lambda known: known[0]):
            source = opener(text, path, index_to)
            if source is not None:
                return source
        if not path.exists():
            raise DataError(
                f"There is nothing at {text}: give a folder, a .zip or .tar archive, a data set of the hub "
                "(hf:OWNER/NAME), or 'digits'."
            )
    except OSError as error:
        raise DataError(f"Cannot read {text}: {error.strerror}.") from error
    raise DataError(f"{text} is neither a folder nor a .zip, .tar, .tar.gz or .tgz archive of images.")
