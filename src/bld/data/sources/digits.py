"""The handwritten digits that come inside scikit-learn: images to try things on, without a download."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from bld.data.sources.base import ImageSource, fingerprint_of, opens
from bld.errors import MissingPackageError


class DigitsSource(ImageSource):
    """1,797 greyscale images of 8×8 pixels, ten classes, in scikit-learn's order.

    Their grey values v in 0 … 16 become round(v · 255 / 16).

    Raises:
        MissingPackageError: without scikit-learn.
    """

    def __init__(self) -> None:
        table = _table()
        self.location, self.notes = "digits", []
        self.names = [f"digit-{index:04d}" for index in range(len(table))]
        self.classes = [str(digit) for digit in range(10)]
        self.labels = table[:, 64].astype(np.int64)
        self.fingerprint = fingerprint_of([("scikit-learn digits", len(self.names))])
        self._pixels = np.rint(table[:, :64].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)

    def _read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])


def _table() -> np.ndarray:
    """float64 (1797, 65): 64 grey values and the class.  Read from the package's file: importing it takes seconds."""
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise MissingPackageError(
            "The images 'digits' come with scikit-learn, which is not installed: "
            "pip install 'binary-latent-diffusion[digits]'."
        )
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


@opens(0)
def _digits(text: str, path: Path, index_to: Path | None) -> ImageSource | None:
    return DigitsSource() if text == "digits" else None
