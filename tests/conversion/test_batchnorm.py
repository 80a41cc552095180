"""BatchNorm into the convolution before it."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d
from zoo import DCNConfig, fuse_batch_norm_, inject_

NETWORKS = {
    "resnet18": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, 0),
    "mobilenetv3_small_050": ({}, 0),
    "tf_mobilenetv3_small_minimal_100": ({}, 0),  # pads by the size
    "densenet121": ({"block_config": (1, 1, 1, 1), "growth_rate": 8}, 8),  # norms before convolutions stay
    "resnet18d": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}, 0),
}


def draw_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, DeformConv2d):
            for parameter in module.predictor_parameters():
                nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fused_networks_compute_the_same(name: str) -> None:
    arguments, left = NETWORKS[name]
    model = inject_(timm.create_model(name, **arguments), DCNConfig(stages=(2, 3, 4))).eval()
    draw_statistics(model)
    model, images = model.double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, norms = model(images), sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    fused = fuse_batch_norm_(model, images)
    remaining = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(fused) == norms - remaining > 0
    assert remaining <= left
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert fuse_batch_norm_(model, images) == []


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used_twice, self.norm_a = DeformConv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.called_twice, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.no_statistics, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, input: Tensor) -> Tensor:
        x = self.used_twice(input)
        y = self.norm_a(x) + x
        z = self.norm_b(self.called_twice(self.called_twice(y)))
        return self.norm_c(self.no_statistics(z))


def test_what_can_not_be_fused_stays() -> None:
    model = Branches().eval()
    before = copy.deepcopy(model.state_dict())
    assert fuse_batch_norm_(model, torch.randn(2, 3, 8, 8)) == []
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_statistics_that_still_move_are_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fuse_batch_norm_(Branches(), torch.randn(2, 3, 8, 8))
