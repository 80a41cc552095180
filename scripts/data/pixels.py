"""Images of any mode of Pillow's as grey or RGB with 8 bits, which is what torchvision's transforms take."""

import numpy as np
from PIL import Image

# What is white in modes that don't say it: the first that no pixel exceeds.
_WHITE = {"I;16": (65535.0,), "I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image; one with more than 8 bits is scaled, where Pillow alone would make all above 255 white.

    16 bits mean 0 to 65535. 32-bit integers are taken for 0 to 255 or 0 to 65535, and floats for 0 to 1, 0 to 255
    or 0 to 65535: the smallest of these ranges that holds the image, else the image's own, of which one
    value alone is black.

    Args:
        image: Of any mode.
        mode: "L" or "RGB".

    Raises:
        ValueError: For values that are not finite.
    """
    whites = _WHITE.get("I;16" if image.mode.startswith("I;16") else image.mode)
    if whites is None:
        return image.convert(mode)
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(f"expected finite pixels, got values from {low} to {high}")
    white = next((white for white in whites if low >= 0 and high <= white), None)
    black, white = (low, high) if white is None else (0.0, white)
    scaled = (values - black) * (255 / ((white - black) or 1))
    return Image.fromarray(scaled.round().astype(np.uint8)).convert(mode)
