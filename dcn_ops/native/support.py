"""Which calls the native kernels accept, and how they take half-precision tensors: what operators share."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dcn_ops.native.library import library

HALF = (torch.bfloat16, torch.float16)
# Bytes of the float32 copies of half-precision images at a time; more if the threads need more images.
_MOST_COPIED = 2**22


def unsupported(input: Tensor) -> str | None:
    """Return why no native kernel takes tensors of this device or dtype; None if they do."""
    if input.device.type != "cpu":
        return f"the native kernel needs the CPU, got input.device={input.device}"
    if input.dtype != torch.float32 and input.dtype not in HALF:
        return f"the native kernel takes float32, float16 and bfloat16, got input.dtype={input.dtype}"
    return None


def unavailable(input: Tensor) -> str | None:
    """Return why there is no native kernel for these images; the first call may build the library."""
    if input.shape[0] == 0:
        return f"the native kernel needs an image, got input.shape={list(input.shape)}"
    if math.prod(input.shape[1:]) >= 2**31:
        return f"the native kernel takes images of fewer than 2**31 values, got input.shape={list(input.shape)}"
    found = library()
    return f"there is no native kernel: {found}" if isinstance(found, str) else None


def some_images(images: int, of_image: int) -> Iterator[slice]:
    """Yield slices of the images, as many at a time as are converted to float32 together.

    Args:
        images: Their number.
        of_image: Bytes of the largest float32 copy that an image needs.
    """
    count = max(torch.get_num_threads(), _MOST_COPIED // of_image)
    for first in range(0, images, count):
        yield slice(first, first + count)
