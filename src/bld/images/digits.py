"""The handwritten digits that come inside scikit-learn: images to try things on, without a download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from bld.errors import MissingPackageError
from bld.images.source import ImageSource, fingerprint_of


class DigitsSource(ImageSource):
    """1,797 greyscale images of 8×8 pixels, ten classes, in scikit-learn's order.

    Their grey values v in 0 … 16 become round(v · 255 / 16). Raises MissingPackageError without scikit-learn.
    """

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingPackageError(
                "The images 'digits' come with scikit-learn, which is not installed: "
                "pip install 'binary-latent-diffusion[digits]'."
            ) from error
        digits = load_digits()
        self.location, self.notes = "digits", []
        self.names = [f"digit-{index:04d}" for index in range(len(digits.images))]
        self.classes = [str(digit) for digit in range(10)]
        self.labels = digits.target.astype(np.int64)
        self.fingerprint = fingerprint_of([("scikit-learn digits", len(self.names))])
        self._pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)

    def _read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])
