"""The distortions of the digits: geometry, determinism, and the statements of the papers."""

import math

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import Tensor
from zoo.scripts.config.command import register
from zoo.scripts.config.schema import Train
from zoo.scripts.data.distortions import DISTORTIONS, _homography, _spline, distort
from zoo.scripts.data.loaders import create_splits

NONE = {"rotation": 0.0, "scale": (1.0, 1.0)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(y: float, x: float, size: int = 28) -> Tensor:
    """Draw a spot centred at (y, x), in pixels from the centre."""
    axis = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / 4)[None, None]


def centre(images: Tensor) -> tuple[float, float]:
    """Return the centre of mass (y, x) of one image, in pixels from its centre."""
    image, axis = images[0, 0], torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    return ((image.sum(1) @ axis / image.sum()).item(), (image.sum(0) @ axis / image.sum()).item())


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_seed_alone_decides(name: str) -> None:
    images = torch.rand(8, 1, 28, 28)
    first, again, other = (distort(name, images, 42, generator(seed)) for seed in (0, 0, 1))
    assert first.shape == (8, 1, 42, 42)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Every image has its own draw.
    same = distort(name, images[:1].repeat(8, 1, 1, 1), 42, generator())
    assert (same[1:] - same[:1]).abs().amax((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize("name", ["mnist_r", "mnist_rts"])
def test_without_rotation_and_scale_digits_keep_their_ink(name: str) -> None:
    image = blob(2.0, -3.0)
    out = distort(name, image, 42, generator(), **NONE)
    torch.testing.assert_close(out.sum(), image.sum(), rtol=1e-3, atol=0)
    if name == "mnist_r":
        torch.testing.assert_close(out[..., 7:35, 7:35], image, rtol=0, atol=1e-5)


def test_a_rotated_spot_stays_at_its_distance_and_turns_by_up_to_90_degrees() -> None:
    image = blob(0.0, 8.0)
    angles = []
    for seed in range(60):
        y, x = centre(distort("mnist_r", image, 42, generator(seed), rotation=90.0, scale=(1.0, 1.0)))
        assert math.hypot(y, x) == pytest.approx(8.0, abs=0.1)
        angles.append(math.degrees(math.atan2(y, x)))
    assert min(angles) < -60
    assert max(angles) > 60
    assert all(abs(angle) <= 91 for angle in angles)


def test_scaled_digits_are_larger_and_smaller() -> None:
    image = blob(0.0, 0.0)
    inks = [distort("mnist_rts", image, 42, generator(seed), scale=(0.7, 1.2)).sum() for seed in range(60)]
    factors = (torch.stack(inks) / image.sum()).sqrt()
    assert 0.69 < factors.min() < 0.8
    assert 1.1 < factors.max() < 1.21


def test_a_homography_takes_its_corners_where_they_belong_and_lines_to_lines() -> None:
    source = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).double()[None]
    target = source + 0.3 * torch.randn(source.shape, dtype=torch.float64)
    back = _homography(source, target)
    line = torch.tensor([[-1.0, -1.0, 1.0], [0.2, -1.0, 1.0], [1.0, -1.0, 1.0]]).double()
    moved = torch.cat((source[0], torch.ones(4, 1)), 1) @ back[0].T
    torch.testing.assert_close(moved[:, :2] / moved[:, 2:], target[0])
    a, b, c = (p[:2] / p[2] for p in line @ back[0].T)
    assert abs(torch.linalg.det(torch.stack((b - a, c - a)))) < 1e-12


def test_a_spline_takes_its_values_at_the_control_points_and_affine_maps_as_they_are() -> None:
    axis = torch.linspace(-14, 14, 4)
    control = torch.cartesian_prod(axis, axis)
    moves = torch.randn(16, 2)
    torch.testing.assert_close(_spline(control, control) @ moves, moves, atol=1e-4, rtol=1e-4)
    points = 20 * torch.randn(50, 2)
    matrix = torch.randn(2, 2)
    torch.testing.assert_close(_spline(points, control) @ (control @ matrix), points @ matrix, atol=1e-3, rtol=1e-3)


def test_projections_keep_most_of_the_digit_and_show_it_once() -> None:
    images = blob(0.0, 0.0).repeat(200, 1, 1, 1)
    out = distort("mnist_p", images, 42, generator(), scale=(0.75, 1.0))
    assert out.isfinite().all()
    # A second, mirrored image beyond the horizon would be ink at the far end of the canvas.
    ink = out.sum((1, 2, 3)) / images[0].sum()
    assert ink.min() > 0.01
    assert ink.quantile(0.99) < 4


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_distortion_is_a_data_group(name: str) -> None:
    register()
    with initialize_config_module("zoo.conf", version_base="1.3"):
        config: Train = OmegaConf.to_object(compose("train", overrides=[f"data={name}", "data.eval_copies=1"]))
    splits = create_splits(config.data, {}, seed=0)
    images, labels = next(iter(splits.evaluate))
    assert images.shape == (100, 1, 42, 42)
    assert splits.num_classes == 10
    assert images.amax() > 2  # there is a digit
    assert len(set(labels.tolist())) == 10


def test_an_unknown_distortion_and_a_wrong_shape_are_named() -> None:
    with pytest.raises(ValueError, match=r"mnist_rts, .*got name='mnist_x'"):
        distort("mnist_x", torch.zeros(1, 1, 28, 28), 42, generator())
    with pytest.raises(ValueError, match=r"got images.shape=torch.Size\(\[1, 28, 20\]\)"):
        distort("mnist_r", torch.zeros(1, 28, 20), 42, generator())
