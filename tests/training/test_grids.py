"""Where the pixels of maps lie in the image: the places that the pictures of sampling locations are drawn at."""

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from zoo.scripts.inspect.cascade import of_each_layer, record
from zoo.scripts.inspect.grids import gridded

from dcn_ops import DeformConv2d
from zoo import inject_


def centre_of_support(network: nn.Module, size: int, index: int) -> float:
    """Return the middle of the pixels in a row on which an output depends: by gradients, not by arithmetic."""
    image = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    network(image)[0, :, index, index].sum().backward()
    assert image.grad is not None
    reached = image.grad.abs().sum((0, 1, 2)).nonzero()
    assert 0 < reached.min() <= reached.max() < size - 1, "the support must not end at the image's border"
    return (reached.min() + reached.max()).item() / 2


def grid_of(network: nn.Module, size: int) -> tuple[Tensor, int]:
    """Return where the pixels of the last map's diagonal lie, [pixels, 2], and their number."""
    with gridded(network, (size, size)) as grids, torch.no_grad():
        after = network(torch.rand(1, 3, size, size, dtype=torch.float64)).shape[-1]
    diagonal = torch.arange(after)[:, None].expand(-1, 2).double()
    return grids.of((after, after)).to_image(diagonal), after


class ResNetStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("resnet18", features_only=True, out_indices=(0, 1, 2)).eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[-1]


NETWORKS = {
    "a ResNet, padded on both sides": ResNetStages,
    "TensorFlow's padding": lambda: nn.Sequential(
        Conv2dSame(3, 4, 3, 2), MaxPool2dSame(3, 2), Conv2dSame(4, 4, 5, 2)
    ),
    "padding='same' and a dilation": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 5, padding="same"), nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2)
    ),
    "patches": lambda: nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, 2)),
    "without padding": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 5), nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(4, 4, 3)
    ),
    "a deformable layer": lambda: nn.Sequential(
        DeformConv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
    ),
}


@pytest.mark.parametrize("size", [95, 96])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_pixel_of_a_map_lies_at_the_centre_of_what_it_depends_on(kind: str, size: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS[kind]().double()
    where, count = grid_of(network, size)
    for index in (count // 2, count // 2 + 1):
        assert where[index].tolist() == [centre_of_support(network, size, index)] * 2


def test_of_a_map_that_no_convolution_makes_only_the_size_counts() -> None:
    network = nn.Sequential(nn.PixelUnshuffle(4), DeformConv2d(48, 4, 3, padding=1))
    (samples,) = record(network, torch.rand(1, 3, 16, 16)).values()
    assert samples.input_grid.to_image(torch.tensor([0.0, 3.0])).tolist() == [1.5, 13.5]


def test_a_resnet_is_drawn_where_its_receptive_fields_are() -> None:
    network = inject_(timm.create_model("resnet18", num_classes=2)).eval()
    drawn = {row.label: row for row in of_each_layer(network, torch.rand(2, 3, 64, 64), torch.tensor([0.5, 0.5]))}
    # The image's centre is 31.5. Pixels of the map of stride 8 lie on 0, 8, ..., those of stride 32 on 0 and 32.
    for label in ("layer2.0.conv2\nmap 8 × 8", "layer4.1.conv2\nmap 2 × 2"):
        assert drawn[label].outputs.tolist() == [[32.0, 32.0]] * 2
        torch.testing.assert_close(drawn[label].points.nanmean(1), torch.full((2, 2), 32.0))
