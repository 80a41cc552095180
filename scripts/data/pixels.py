"""Convert Pillow images of any mode to grey or RGB with 8 bits, as torchvision's transforms need them."""

import numpy as np
from PIL import Image

# The value of white in modes that don't define it: the first that no pixel exceeds.
_WHITE = {"I;16": (65535.0,), "I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image. More than 8 bits are scaled; Pillow itself would make every value above 255 white.

    16 bits mean 0 to 65535. The range of 32-bit integers is 0 to 255 or 0 to 65535, that of floats 0 to 1, 0 to 255
    or 0 to 65535: the smallest that holds the image, else the image's own range. An image of one value is then
    black.

    Args:
        image: An image of any mode.
        mode: "L" or "RGB".

    Raises:
        ValueError: If values are not finite.
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
