"""The sampling locations of a converted network's filters in an image.

Shapes: N images, K taps, L levels, Ho x Wo the output map of a layer. Positions are (y, x).
"""

from dataclasses import dataclass, replace
from posixpath import commonpath

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d

from .grids import Grid, gridded
from .layers import watched


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of one layer on one batch, for its first offset group."""

    positions: Tensor  # [N, K, 2, Ho, Wo], in pixels of the layer's input
    masks: Tensor  # [N, K, Ho, Wo], 1 if the layer has no mask
    input_size: tuple[int, int]
    input_grid: Grid  # where the pixels of input and output lie in the image
    output_grid: Grid
    image: tuple[int, int]  # height and width

    @property
    def output_size(self) -> tuple[int, int]:
        """Ho, Wo."""
        return self.positions.shape[3], self.positions.shape[4]


@dataclass(frozen=True, kw_only=True)
class SamplingLocations:
    """The locations of the samples that reach one output, in pixels of the images."""

    points: Tensor  # [N, K^L, 2], NaN if a sample's path left a map
    masks: Tensor  # [N, K^L], the products of the masks
    outputs: Tensor  # [N, 2], the output itself
    label: str | None = None


@torch.no_grad()
def record(model: nn.Module, images: Tensor) -> dict[str, Samples]:
    """Return the samples of images [N, C, H, W], by layer in the order of execution."""
    found: dict[str, tuple[Tensor, Tensor, tuple[int, int]]] = {}

    def seen(name: str, layer: DeformConv2d, input: Tensor) -> None:
        if len(input) != len(images):  # a detector's regions, not images
            return
        positions = layer.sampling_positions(input)[:, 0]
        _, mask = layer.offsets(input)
        masks = torch.ones_like(positions[:, :, 0]) if mask is None else mask[:, : positions.shape[1]]
        found[name] = positions, masks, (input.shape[-2], input.shape[-1])

    size = images.shape[-2], images.shape[-1]
    with watched(model, seen), gridded(model, size) as grids:
        model(images)
    return {
        name: Samples(
            positions=positions,
            masks=masks,
            input_size=input_size,
            input_grid=grids.of(input_size),
            output_grid=grids.of((positions.shape[3], positions.shape[4])),
            image=size,
        )
        for name, (positions, masks, input_size) in found.items()
    }


def chain(found: dict[str, Samples], top: str, levels: int) -> list[str]:
    """Return the layers of a cascade, from ``top`` down.

    Raises:
        ValueError: If ``top`` is no deformable layer.
    """
    if top not in found:
        raise ValueError(f"expected a deformable layer, one of {', '.join(found)}, got layer={top}")
    below = list(found)[: list(found).index(top)][::-1]
    names = [top]
    for name in below[: levels - 1]:
        if found[name].output_size != found[names[-1]].input_size:
            break
        names.append(name)
    return names


def cascade(found: dict[str, Samples], top: str, levels: int, at: Tensor) -> tuple[Tensor, Tensor]:
    """Follow one output of a layer through the layers below it, as in figure 6 of the DCNv1 paper.

    A sample of one layer lies between outputs of the layer below; the path continues at the nearest of them. Layers
    are treated as a stack, without the shortcuts of residual blocks.

    Args:
        found: The result of ``record``.
        top: The layer whose output is followed.
        levels: Largest number of layers; there are fewer if the map below doesn't have the size that the samples
            need.
        at: (y, x) in [0, 1] of the image, [2], or [N, 2] if each image has its own. The output nearest to it is
            followed.

    Returns:
        Positions [N, K^L, 2] in pixels of the bottom layer's input, NaN if a sample left the map above and reads
        zeros, and the products of the masks [N, K^L].
    """
    names = chain(found, top, levels)
    points = _index(found[top], at)[:, None]
    weights = points.new_ones(len(points), 1)
    for name in names:
        points, weights = _step(found[name], points, weights)
    return points, weights


def followed(found: dict[str, Samples], top: str, levels: int, at: Tensor) -> SamplingLocations:
    """Return the samples that reach the output of a layer nearest to a place, in pixels of the images."""
    points, masks = cascade(found, top, levels, at)
    bottom = found[chain(found, top, levels)[-1]]
    outputs = found[top].output_grid.to_image(_index(found[top], at))
    return SamplingLocations(points=bottom.input_grid.to_image(points), masks=masks, outputs=outputs)


def of_each_layer(model: nn.Module, images: Tensor, at: Tensor) -> list[SamplingLocations]:
    """Return the locations where each deformable layer samples images for one of its outputs.

    Args:
        model: The network.
        images: [N, C, H, W].
        at: (y, x) in [0, 1], [2] or [N, 2], as for ``cascade``.

    Returns:
        One for each layer. Its label is the layer's name, without what all names begin with, and the map's size.
    """
    found = record(model, images)
    shared = commonpath([name.replace(".", "/") for name in found]).replace("/", ".") if len(found) > 1 else ""
    rows = []
    for name, samples in found.items():
        height, width = samples.output_size
        label = f"{name.removeprefix(shared).lstrip('.')}\nmap {height} × {width}"
        rows.append(replace(followed(found, name, 1, at), label=label))
    return rows


def _index(layer: Samples, at: Tensor) -> Tensor:  # [N, 2]
    """Return the pixels of the layer's output map nearest to places [2] or [N, 2] in [0, 1] of the image."""
    pixels = at.to(layer.positions) * layer.positions.new_tensor(layer.image) - 0.5
    return layer.output_grid.nearest(pixels, layer.output_size).expand(len(layer.positions), 2)


def _step(layer: Samples, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Replace points [N, P, 2] of the output map by the samples [N, P * K, 2] that their outputs read."""
    height, width = layer.output_size
    nearest = points.round()
    size = points.new_tensor([height, width])
    inside = ((nearest >= 0) & (nearest < size)).all(2)  # [N, P], False for NaN
    y, x = nearest.where(inside[..., None], 0).long().unbind(2)
    image = torch.arange(len(points), device=points.device)[:, None]
    samples = layer.positions.permute(0, 3, 4, 1, 2)[image, y, x]  # [N, P, K, 2]
    samples = samples.where(inside[..., None, None], torch.nan)
    masks = layer.masks.permute(0, 2, 3, 1)[image, y, x]  # [N, P, K]
    return samples.flatten(1, 2), (weights[..., None] * masks).flatten(1)
