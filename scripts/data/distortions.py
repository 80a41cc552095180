"""The distortions of digits in "Spatial Transformer Networks" (Jaderberg et al., 2015, appendix), a batch at once.

Every function maps images [N, C, H, W] to a canvas [N, C, S, S] by sampling, and draws only from its generator.
Points are (x, y) in pixels from the centre of the image or of the canvas. torchvision's functions use one map for
the whole batch; here each image has its own.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Range = tuple[float, float]
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


def distort(
    name: str,
    images: Tensor,
    canvas: int,
    generator: Generator,
    *,
    rotation: float = 45.0,
    scale: Range = (0.7, 1.2),
) -> Tensor:
    """Distort a batch.

    Args:
        name: A key of ``DISTORTIONS``, such as "mnist_rts".
        images: [N, C, H, W], H = W, of a floating dtype.
        canvas: S, in pixels.
        generator: A CPU generator; only its state determines the draws.
        rotation: Degrees either way, for the distortions that rotate.
        scale: Range of the scale.

    Returns:
        [N, C, S, S]; positions outside the image are 0.

    Raises:
        ValueError: If the name is unknown, or the images are not square.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"expected a distortion among {', '.join(DISTORTIONS)}, got {name=}")
    if images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images [N, C, H, H], got {images.shape=}")
    points = DISTORTIONS[name](images, canvas, generator, rotation, scale)
    # grid_sample's [-1, 1] spans the image from edge to edge.
    return F.grid_sample(images, (points * (2 / images.shape[-1])).to(images.dtype), align_corners=False)


def _rotate(images: Tensor, canvas: int, generator: Generator, rotation: float, scale: Range) -> Tensor:
    """R: rotated about the centre."""
    angle, size = _draw_turn(len(images), generator, rotation, scale)
    return _turned(_pixels(canvas), angle, size)


def _rotate_scale_translate(
    images: Tensor, canvas: int, generator: Generator, rotation: float, scale: Range
) -> Tensor:
    """RTS: rotated, scaled, and moved so that the (unrotated) image stays on the canvas."""
    angle, size = _draw_turn(len(images), generator, rotation, scale)
    room = ((canvas - images.shape[-1] * size) / 2).clamp(min=0)
    shift = room[:, None, None] * _uniform(generator, len(images), 1, 2)
    return _turned(_pixels(canvas) - shift, angle, size)


def _project(
    images: Tensor,
    canvas: int,
    generator: Generator,
    rotation: float,
    scale: Range,
    deviation: float = 5.0,
) -> Tensor:
    """P: scaled, and each corner moved by a normal draw, in pixels; shapes that are not convex are drawn again."""
    half = images.shape[-1] / 2
    corners = half * torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    start = corners * _between(scale, _uniform(generator, len(images)))[:, None, None]  # [N, 4, 2]
    moved = start + deviation * torch.randn(start.shape, generator=generator)
    while (wrong := ~_convex(moved)).any():
        moved[wrong] = start[wrong] + deviation * torch.randn(start[wrong].shape, generator=generator)
    # Projective maps from the moved corners back to the image's corners, [N, 3, 3].
    back = _homography(moved.double(), corners.double().expand_as(moved))
    points = _pixels(canvas).double()  # [S * S, 2]
    homogeneous = F.pad(points, (0, 1), value=1.0) @ back.mT  # [N, S * S, 3]
    depth = homogeneous[..., 2:]
    inside = F.pad(moved.double().mean(1, keepdim=True), (0, 1), value=1.0) @ back.mT  # [N, 1, 3]
    # Beyond the horizon the map would show the image again, mirrored; these positions read outside instead.
    ahead = depth * inside[..., 2:].sign() > 1e-6
    found = torch.where(ahead, homogeneous[..., :2] / depth, points.new_tensor(4.0 * images.shape[-1]))
    return found.float().view(-1, canvas, canvas, 2)


def _bend(
    images: Tensor,
    canvas: int,
    generator: Generator,
    rotation: float,
    scale: Range,
    deviation: float = 1.5,
) -> Tensor:
    """E: scaled, and bent by a thin plate spline whose 4 x 4 control points move by normal draws, in pixels.

    The spline maps the canvas to the image. Sampling needs this direction, and it is as likely as its inverse.
    """
    size = _between(scale, _uniform(generator, len(images)))
    moves = deviation * torch.randn(len(images), 16, 2, generator=generator)
    half = images.shape[-1] / 2
    axis = torch.linspace(-half, half, 4)
    control = torch.cartesian_prod(axis, axis)
    points = _pixels(canvas)  # [S * S, 2]
    bent = points + _spline(points, control) @ moves  # [N, S * S, 2]
    return (bent / size[:, None, None]).view(-1, canvas, canvas, 2)


Distortion = Callable[[Tensor, int, Generator, float, Range], Tensor]
DISTORTIONS: dict[str, Distortion] = {
    "mnist_r": _rotate,
    "mnist_rts": _rotate_scale_translate,
    "mnist_p": _project,
    "mnist_e": _bend,
}


def _pixels(canvas: int) -> Tensor:
    """Return the centres of the canvas' pixels [S * S, 2], row-major."""
    axis = torch.arange(canvas) - (canvas - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y), 2).view(-1, 2)


def _turned(points: Tensor, angle: Tensor, size: Tensor) -> Tensor:
    """Return the positions of canvas points [(N,) S * S, 2] in images rotated by an angle and scaled, both [N]."""
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), 1).view(-1, 2, 2)
    side = math.isqrt(points.shape[-2])
    return (points @ (turn / size[:, None, None]).mT).view(-1, side, side, 2)


def _draw_turn(batch: int, generator: Generator, rotation: float, scale: Range) -> tuple[Tensor, Tensor]:
    angle = math.radians(rotation) * _uniform(generator, batch)
    return angle, _between(scale, _uniform(generator, batch))


def _uniform(generator: Generator, *shape: int) -> Tensor:
    """Draw from [-1, 1)."""
    return torch.rand(*shape, generator=generator) * 2 - 1


def _between(scale: Range, uniform: Tensor) -> Tensor:
    return scale[0] + (scale[1] - scale[0]) * (uniform + 1) / 2


def _convex(corners: Tensor) -> Tensor:
    """Tell whether the quadrilaterals [N, 4, 2] turn the same way at every corner, by more than 5 degrees."""
    sides = F.normalize(corners.roll(-1, 1) - corners, dim=2)
    following = sides.roll(-1, 1)
    sine = sides[..., 0] * following[..., 1] - sides[..., 1] * following[..., 0]
    return (sine > math.sin(math.radians(5))).all(1)


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """Return the projective maps [N, 3, 3] from four points [N, 4, 2] to four others."""
    x, y = source.unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    u, v = target.unbind(2)
    rows_u = torch.stack((x, y, one, zero, zero, zero, -u * x, -u * y), 2)
    rows_v = torch.stack((zero, zero, zero, x, y, one, -v * x, -v * y), 2)
    entries = torch.linalg.solve(torch.cat((rows_u, rows_v), 1), torch.cat((u, v), 1))
    return F.pad(entries, (0, 1), value=1.0).view(-1, 3, 3)


def _spline(points: Tensor, control: Tensor) -> Tensor:
    """Return [P, M]: the value at P points of a thin plate spline through M control points, per control value."""
    count = len(control)
    affine = F.pad(control, (1, 0), value=1.0).double()  # [M, 3]
    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = _bending(control, control)
    system[:count, count:] = affine
    system[count:, :count] = affine.mT
    basis = torch.cat((_bending(points, control), F.pad(points, (1, 0), value=1.0).double()), 1)
    return torch.linalg.solve(system, basis.mT)[:count].mT.float()


def _bending(a: Tensor, b: Tensor) -> Tensor:
    square = torch.cdist(a.double(), b.double()).square()
    return torch.xlogy(square, square)  # r^2 log r^2, 0 at 0
