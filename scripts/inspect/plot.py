"""The figure of the DCN papers: where the filters of a trained network sample an image."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d

from .cascade import watched


@torch.no_grad()
def sampling_positions(model: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by layer name, where the first offset group samples at the centre of the map.

    Args:
        model: A converted network.
        images: [N, C, H, W].

    Returns:
        Positions [N, K, 2] as (y, x) in pixels of the image, and masks [N, K], 1 where the layer has none.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def seen(name: str, layer: DeformConv2d, features: Tensor) -> None:
        found[name] = _at_centre(layer, features, images.shape[-2:])

    with watched(model, seen):
        model(images)
    return found


def _at_centre(layer: DeformConv2d, features: Tensor, image: torch.Size) -> tuple[Tensor, Tensor]:
    positions = layer.sampling_positions(features)[:, 0]  # [N, K, 2, Ho, Wo]
    y, x = positions.shape[3] // 2, positions.shape[4] // 2
    # From pixels of the feature map to pixels of the image, centre to centre.
    scale = positions.new_tensor([image[0] / features.shape[2], image[1] / features.shape[3]])
    _, mask = layer.offsets(features)
    at = (positions[..., y, x] + 0.5) * scale - 0.5
    return at, torch.ones_like(at[..., 0]) if mask is None else mask[:, : at.shape[1], y, x]


def draw(model: nn.Module, images: Tensor, path: Path) -> None:
    """Draw images [N, C, H, W] and where the central output of each converted layer samples them.

    One row per layer, one column per image; the size of a dot is its mask.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = sampling_positions(model, images)
    pictures = images.mean(1).cpu().numpy()
    _, height, width = pictures.shape
    figure, axes = pyplot.subplots(
        len(found), len(images), figsize=(1.5 * len(images), 1.5 * len(found)), squeeze=False
    )
    for row, (name, maps) in zip(axes, found.items(), strict=True):
        position, weight = (tensor.cpu().numpy() for tensor in maps)
        for axis, picture, at, size in zip(row, pictures, position, weight, strict=True):
            axis.imshow(picture, cmap="gray")
            axis.scatter(at[:, 1], at[:, 0], s=20 * size, c="tab:red", edgecolors="white", linewidths=0.4)
            # Samples beyond the image read 0; those just beyond it are shown.
            axis.set(xlim=(-width / 4, width * 5 / 4), ylim=(height * 5 / 4, -height / 4), xticks=[], yticks=[])
            axis.set_facecolor("dimgray")
        row[0].set_ylabel(name, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
