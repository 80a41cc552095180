"""Alignment of video networks, rebuilt from their description: EDVR's and BasicVSR++'s second-order one."""

import torch
from sources import EDVR, renamed
from torch import nn
from torchvision.ops import deform_conv2d

from dcn_ops import DeformConv2d
from zoo import migrate

CHANNELS, GROUPS = 8, 4


class Pyramid(nn.Module):
    """EDVR's alignment in small: a feature predicts where the neighbouring frame is sampled, in two steps."""

    def __init__(self, layer):
        super().__init__()
        self.offset_conv = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.dcn_pack = layer()
        self.cas_dcnpack = layer()

    def forward(self, frame, reference):
        feature = nn.functional.leaky_relu(self.offset_conv(torch.cat((frame, reference), 1)), 0.1)
        return self.align(self.cas_dcnpack, self.align(self.dcn_pack, frame, feature), feature)

    def align(self, layer, frame, feature):
        return layer(frame, feature)


class OnOurs(Pyramid):
    def align(self, layer, frame, feature):
        return layer(frame, *layer.offsets(feature))


def ours():
    return DeformConv2d(CHANNELS, CHANNELS, 3, padding=1, offset_groups=GROUPS, mask_scale=1)


def frames():
    return [torch.randn(1, CHANNELS, 9, 8, dtype=torch.float64) for _ in range(2)]


def assert_same(one, other, inputs):
    torch.testing.assert_close(one(*inputs), other(*inputs), rtol=1e-12, atol=1e-12)


def test_edvr_runs_on_our_layers_with_its_weights():
    source = Pyramid(lambda: EDVR(offset_groups=GROUPS)).double()
    model = OnOurs(ours).double()
    for weights in (
        source.state_dict(),
        {"params": source.state_dict()},  # as BasicSR saves
        renamed(source.state_dict(), (r"\.conv_offset\.", ".conv_offset_mask.")),  # EDVR's first release
    ):
        result = migrate.load_(model, weights)
        assert list(result.layers) == ["dcn_pack", "cas_dcnpack"]
        assert_same(source, model, frames())


class SecondOrder(nn.Module):
    """BasicVSR++: a stack of convolutions predicts residuals of two optical flows, and masks.

    The state_dict has weight and bias of the layer itself, and conv_offset.{0,2,4,6}.
    """

    def __init__(self, limit=10.0):
        super().__init__()
        self.limit = limit
        stack = [nn.Conv2d(3 * CHANNELS + 4, CHANNELS, 3, padding=1)]
        for outputs in (CHANNELS, CHANNELS, 27 * GROUPS):
            stack += [nn.LeakyReLU(0.1), nn.Conv2d(CHANNELS, outputs, 3, padding=1)]
        self.conv_offset = nn.Sequential(*stack)

    def predicted(self, feature, flow_1, flow_2):
        out = self.conv_offset(torch.cat((feature, flow_1, flow_2), 1))
        one, two, mask = out.chunk(3, 1)
        one, two = (self.limit * torch.cat((one, two), 1).tanh()).chunk(2, 1)
        # Flows are (x, y), offsets (y, x).
        one = one + flow_1.flip(1).repeat(1, one.shape[1] // 2, 1, 1)
        two = two + flow_2.flip(1).repeat(1, two.shape[1] // 2, 1, 1)
        return torch.cat((one, two), 1), mask.sigmoid()


class Theirs(SecondOrder):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, 2 * CHANNELS, 3, 3) / 12)
        self.bias = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x, *given):
        offset, mask = self.predicted(*given)
        return deform_conv2d(x, offset, self.weight, self.bias, padding=1, mask=mask)


class Ours(DeformConv2d):
    predicted = SecondOrder.predicted

    def __init__(self):
        super().__init__(2 * CHANNELS, CHANNELS, 3, padding=1, offset_groups=GROUPS, predict_offsets=False)
        self.limit, self.conv_offset = 10.0, SecondOrder().conv_offset

    def forward(self, x, *given):
        return super().forward(x, *self.predicted(*given))


def test_basicvsr_plus_plus_runs_on_our_layer_with_its_weights():
    source = nn.ModuleDict({"backward_1": Theirs()}).double()
    model = nn.ModuleDict({"backward_1": Ours()}).double()
    result = migrate.load_(model, {"state_dict": source.state_dict()})
    assert not result.layers
    assert set(result.loaded) == set(source.state_dict())
    flows = [3 * torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(1, 2 * CHANNELS, 9, 8, dtype=torch.float64)
    feature = torch.randn(1, 3 * CHANNELS, 9, 8, dtype=torch.float64)
    assert_same(source["backward_1"], model["backward_1"], (x, feature, *flows))
