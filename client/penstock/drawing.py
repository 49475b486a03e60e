"""A small grey image as characters."""

from __future__ import annotations

import math

import numpy as np

from penstock.wire import Array

SHADES = " ░▒▓█"
PLAIN_SHADES = " .+#@"
"""For terminals and files that know nothing but ASCII."""
KNOWN = frozenset({(8, 8), (28, 28)})
"""Sizes of handwritten digits: drawn without being asked."""
LARGEST = 64


def image_of(array: Array, *, asked: bool = False) -> Array | None:
    """The one image that a tensor holds, [height, width], or None.

    Unit dimensions are dropped; a row of 64 or 784 numbers is a square. When `asked`, any rectangle up to 64 x 64 and
    any square number of values will do.
    """
    if array.dtype.kind == "O":
        return None
    image = array.squeeze()
    side = math.isqrt(image.size)
    if image.ndim == 1 and side * side == image.size and side > 1:
        image = image.reshape(side, side)
    if image.ndim != 2 or max(image.shape) > LARGEST:
        return None
    return image if asked or image.shape in KNOWN else None


def draw(image: Array, shades: str = SHADES) -> list[str]:
    """One line of text for each row of pixels, two characters a pixel: the larger the value, the darker."""
    values = np.nan_to_num(image.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    steps = (values - low) / ((high - low) or 1.0) * (len(shades) - 1)
    return ["".join(shades[int(step)] * 2 for step in row) for row in np.round(steps).tolist()]
