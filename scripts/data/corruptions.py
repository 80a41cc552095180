"""Common corruptions at five severities, after Hendrycks and Dietterich (2019) and MNIST-C (Mu and Gilmer, 2019).

Every function takes images [N, C, H, W] in [0, 1], a severity of 1 to 5 and a CPU generator, and returns images in
[0, 1] of the same shape. Lengths scale with the image, so one table serves 28 and 224 pixels. Strengths therefore
differ from ImageNet-C's, and numbers compare only with those of this module. The geometric maps are our own:
torchvision's functions move all images of a batch by the same angle, and draw from the global generator.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional

Corruption = Callable[[Tensor, int, Generator], Tensor]


def corrupt(name: str, images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Corrupt images.

    Args:
        name: A key of ``CORRUPTIONS``.
        images: [N, C, H, W] of [0, 1].
        severity: 1 to 5.
        generator: A CPU generator.

    Raises:
        ValueError: If the name or severity is unknown, or values exceed [0, 1], as those of normalised images do.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"expected a corruption among {', '.join(CORRUPTIONS)}, got {name=}")
    if severity not in range(1, 6):
        raise ValueError(f"expected a severity of 1 to 5, got {severity=}")
    if images.amin() < -1e-4 or images.amax() > 1 + 1e-4:
        low, high = images.amin().item(), images.amax().item()
        raise ValueError(
            f"expected images of [0, 1], got values in [{low:.2f}, {high:.2f}]: undo the normalisation"
        )
    return CORRUPTIONS[name](images, severity - 1, generator).clamp(0, 1)


def _gaussian_noise(images: Tensor, level: int, generator: Generator) -> Tensor:
    return images + (0.06, 0.12, 0.18, 0.26, 0.38)[level] * _normal(images, generator)


def _shot_noise(images: Tensor, level: int, generator: Generator) -> Tensor:
    photons = (60, 25, 12, 5, 3)[level]
    return torch.poisson(images.clamp(0, 1).cpu() * photons, generator=generator).to(images) / photons


def _impulse_noise(images: Tensor, level: int, generator: Generator) -> Tensor:
    share = (0.02, 0.05, 0.1, 0.17, 0.27)[level]
    draw = torch.rand(images.shape, generator=generator).to(images)
    return torch.where(draw < share / 2, 0.0, torch.where(draw < share, 1.0, images))


def _gaussian_blur(images: Tensor, level: int, generator: Generator) -> Tensor:
    return _blurred(images, (0.01, 0.018, 0.027, 0.04, 0.055)[level] * images.shape[-1])


def _motion_blur(images: Tensor, level: int, generator: Generator) -> Tensor:
    length = max(3, round((0.06, 0.1, 0.14, 0.19, 0.25)[level] * images.shape[-1]))
    steps = torch.linspace(-0.5, 0.5, length) * (2 * length / images.shape[-1])
    angle = math.pi * _uniform(len(images), generator)
    total = torch.zeros_like(images)
    for step in steps:
        total += _mapped(images, _identity(len(images)), torch.stack((angle.cos(), angle.sin()), 1) * step)
    return total / length


def _contrast(images: Tensor, level: int, generator: Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return mean + (images - mean) * (0.6, 0.45, 0.3, 0.2, 0.1)[level]


def _brightness(images: Tensor, level: int, generator: Generator) -> Tensor:
    return images + (0.1, 0.2, 0.3, 0.4, 0.5)[level]


def _pixelate(images: Tensor, level: int, generator: Generator) -> Tensor:
    size = [max(2, round((0.6, 0.5, 0.4, 0.3, 0.25)[level] * side)) for side in images.shape[-2:]]
    return F.interpolate(F.interpolate(images, size, mode="area"), images.shape[-2:], mode="nearest")


def _jpeg(images: Tensor, level: int, generator: Generator) -> Tensor:
    quality = (25, 18, 13, 9, 6)[level]
    if images.shape[1] not in (1, 3):
        raise ValueError(f"JPEG supports images of 1 or 3 channels, got {images.shape=}")
    pixels = images.clamp(0, 1).mul(255).round().byte().cpu().permute(0, 2, 3, 1)
    coded = torch.stack([_through_jpeg(image, quality) for image in pixels])  # [N, H, W, C]
    return coded.permute(0, 3, 1, 2).to(images) / 255


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()  # torchvision is dropping its own JPEG
    Image.fromarray(image.squeeze(2).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).view(image.shape)


def _rotate(images: Tensor, level: int, generator: Generator) -> Tensor:
    angle = _signed(len(images), math.radians((10, 20, 30, 45, 60)[level]), generator)
    cos, sin = angle.cos(), angle.sin()
    return _mapped(images, torch.stack((cos, -sin, sin, cos), 1).view(-1, 2, 2))


def _shear(images: Tensor, level: int, generator: Generator) -> Tensor:
    matrix = _identity(len(images))
    matrix[:, 0, 1] = _signed(len(images), (0.1, 0.2, 0.3, 0.45, 0.6)[level], generator)
    return _mapped(images, matrix)


def _scale(images: Tensor, level: int, generator: Generator) -> Tensor:
    return _mapped(images, _identity(len(images)) / (0.9, 0.8, 0.7, 0.6, 0.5)[level])


def _translate(images: Tensor, level: int, generator: Generator) -> Tensor:
    way = (0.04, 0.08, 0.12, 0.16, 0.2)[level] * 2
    angle = math.pi * _uniform(len(images), generator)
    return _mapped(images, _identity(len(images)), way * torch.stack((angle.cos(), angle.sin()), 1))


def _elastic(images: Tensor, level: int, generator: Generator) -> Tensor:
    """Move every pixel by a smooth random field whose standard deviation grows with the severity."""
    count, _, height, width = images.shape
    field = torch.randn(count, 2, height, width, generator=generator).to(images)
    field = _blurred(field, 0.06 * width)
    field /= field.std((1, 2, 3), keepdim=True)
    grid = F.affine_grid(_theta(_identity(count), None).to(images), [count, 1, height, width], align_corners=False)
    moved = grid + 2 * (0.01, 0.018, 0.026, 0.035, 0.045)[level] * field.permute(0, 2, 3, 1)
    return F.grid_sample(images, moved, align_corners=False)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "rotate": _rotate,
    "shear": _shear,
    "scale": _scale,
    "translate": _translate,
    "elastic": _elastic,
}


# They leave every object where it is, so boxes and masks stay right.
STILL = tuple(name for name in CORRUPTIONS if name not in ("rotate", "shear", "scale", "translate", "elastic"))


def _normal(images: Tensor, generator: Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator).to(images)


def _uniform(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator) * 2 - 1


def _signed(count: int, value: float, generator: Generator) -> Tensor:
    return value * (2 * torch.randint(2, (count,), generator=generator) - 1)


def _identity(count: int) -> Tensor:
    return torch.eye(2).repeat(count, 1, 1)


def _theta(matrix: Tensor, shift: Tensor | None) -> Tensor:
    """Return the map [N, 2, 3] on [-1, 1] x [-1, 1] of a matrix [N, 2, 2] and a shift [N, 2]."""
    return torch.cat((matrix, matrix.new_zeros(len(matrix), 2, 1) if shift is None else shift[:, :, None]), 2)


def _mapped(images: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """Sample images at the result's pixels mapped by matrix and shift; positions outside the image read 0."""
    theta = _theta(matrix, shift).to(images)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1))
    return functional.gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)
