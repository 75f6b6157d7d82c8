"""The real images that the demonstrations start from, and a model of pictures of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.demo_data._data import Floats

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))

KERNEL_SHARPNESS = 16.0
"""Gamma of the RBF kernel, times the number of pixels of a picture."""
MOST_COMPONENTS = 500
"""Training pictures, at most, on which the approximation of the RBF kernel is built."""


def load_digit_images() -> tuple[Floats, NDArray[np.int64]]:
    """Load scikit-learn's handwritten digits.

    Returns
    -------
    images : ndarray of float32
        Share of ink in each pixel, (1797, 8, 8), from 0 to 1.
    digits : ndarray of int64
        The digit each image shows, (1797,).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


def picture_classifier(pictures: int, pixels: int, seed: int) -> Any:
    """Logistic regression on an approximate RBF kernel, for so many pictures of values from 0 to 1."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    components = min(MOST_COMPONENTS, pictures)
    kernel = Nystroem(gamma=KERNEL_SHARPNESS / pixels, n_components=components, random_state=seed)
    return make_pipeline(kernel, LogisticRegression(C=10, max_iter=2000))
