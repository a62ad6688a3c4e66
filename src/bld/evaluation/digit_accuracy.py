"""The metric for digits: does a classifier that knows real digits recognise the generated ones?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bld.errors import MissingPackageError, SettingError


def digit_accuracy(images: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Share of images, 0 … 1, recognised as their class by an SVM trained on all 1,797 real digits.

    The classifier is scikit-learn's SVC(gamma=0.001) on pixels 0 … 16.

    Args:
        images: float (n, 8, 8), grey values in [0, 1].
        labels: n digits 0 … 9, what the images are meant to show.

    Raises:
        MissingPackageError: without scikit-learn.
        SettingError: for other shapes, no images, or grey values outside [0, 1].
    """
    images, labels = np.asarray(images, dtype=np.float64), np.asarray(labels)
    if images.shape != (len(labels), 8, 8) or not len(labels):
        raise SettingError(f"Digits are (n, 8, 8) with n labels, not {images.shape} with {len(labels)}.")
    if images.min() < 0 or images.max() > 1:
        raise SettingError(f"Grey values lie in 0 … 1, not in {images.min():.3g} … {images.max():.3g}.")
    try:
        from sklearn.datasets import load_digits
        from sklearn.svm import SVC
    except ImportError as error:
        raise MissingPackageError(
            "Recognising digits needs scikit-learn, which is not installed: "
            "pip install 'binary-latent-diffusion[digits]'."
        ) from error
    real = load_digits()
    classifier = SVC(gamma=0.001).fit(real.data, real.target)
    return float((classifier.predict(images.reshape(-1, 64) * 16) == labels).mean())
