"""The layer: a plain convolution at first, then one that learns where to sample."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dcn_ops import DeformConv2d, deform_conv2d
from dcn_ops.testing import assert_within_budget

SHAPES = {
    "square": {"kernel_size": 3, "padding": 1},
    "unpadded": {"kernel_size": (3, 2), "bias": False},
    "strided": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": (2, 1)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2, "stride": 2},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 4},
    "pointwise": {"kernel_size": 1},
    "same": {"kernel_size": (3, 5), "padding": "same", "dilation": (1, 2)},
    "same_even": {"kernel_size": (4, 3), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflected": {"kernel_size": 5, "padding": 2, "padding_mode": "reflect", "stride": 2},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular", "groups": 4},
}
OFFSETS = {
    "v2": {},
    "v1": {"modulated": False},
    "groups": {"offset_groups": 2},
    "bound": {"offset_bound": 3.0},
    "separable": {"separable_predictor": True},
}


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 4, 9, 7)


def trained_layer(**arguments: Any) -> DeformConv2d:
    """Return a layer whose predictor is not zero any more."""
    layer = DeformConv2d(4, 8, 3, **{"padding": 1} | arguments)
    nn.init.normal_(layer.offset_weight, std=0.1)
    nn.init.normal_(layer.offset_bias)
    return layer


# Torch's remark on its own convolution.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=OFFSETS)
def test_a_fresh_layer_is_the_plain_convolution(shape: dict, offsets: dict, image: Tensor) -> None:
    conv, layer = nn.Conv2d(4, 8, **shape), DeformConv2d(4, 8, **shape, **offsets)
    layer.load_state_dict(conv.state_dict(), strict=False)
    outputs = [layer(image), DeformConv2d.from_conv2d(conv, **offsets)(image)]
    same_precision, exact = conv(image), conv.double()(image.double())
    for output in outputs:
        assert_within_budget({"output": output}, {"output": exact}, {"output": same_precision})


def test_a_fresh_layer_draws_the_weights_of_the_plain_convolution() -> None:
    drawn = []
    for layer_type in (nn.Conv2d, DeformConv2d):
        torch.manual_seed(7)
        layer = layer_type(4, 8, 3)
        drawn.append((layer.weight, layer.bias, torch.get_rng_state()))
    assert all(map(torch.equal, *drawn))


def test_the_layer_has_four_parameters_of_one_dtype_and_device() -> None:
    layer = DeformConv2d(4, 8, 3, offset_groups=2, dtype=torch.float64, device="meta")
    shapes = {name: list(parameter.shape) for name, parameter in layer.state_dict().items()}
    assert shapes == {"weight": [8, 4, 3, 3], "bias": [8], "offset_weight": [54, 4, 3, 3], "offset_bias": [54]}
    assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(torch.float64, "meta")}


def test_a_separable_predictor_is_a_mean_and_a_1x1_convolution(image: Tensor) -> None:
    layer = DeformConv2d(4, 4, 5, stride=2, padding=2, groups=4, separable_predictor=True)
    shapes = {name: list(p.shape) for name, p in layer.state_dict().items() if name.startswith("offset")}
    assert shapes == {
        "offset_depthwise_weight": [4, 1, 5, 5],
        "offset_weight": [75, 4, 1, 1],
        "offset_bias": [75],
    }
    nn.init.normal_(layer.offset_weight)
    offset, mask = layer.offsets(image)
    mean = nn.functional.avg_pool2d(image, 5, stride=2, padding=2)
    out = nn.functional.conv2d(mean, layer.offset_weight)
    torch.testing.assert_close(torch.cat((offset, mask), 1), torch.cat((out[:, :50], 2 * out[:, 50:].sigmoid()), 1))


def test_without_mask_the_predictor_has_two_channels_a_tap() -> None:
    layer = DeformConv2d(4, 8, 3, modulated=False)
    assert (len(layer.offset_weight), len(layer.offset_bias)) == (18, 18)


def test_predictions_are_a_convolution_and_the_mask_a_sigmoid(image: Tensor) -> None:
    layer = trained_layer(stride=2)
    offset, mask = layer.offsets(image)
    out = nn.functional.conv2d(image, layer.offset_weight, layer.offset_bias, stride=2, padding=1)
    assert torch.equal(offset, out[:, :18])
    assert torch.equal(mask, 2 * out[:, 18:].sigmoid())
    expected = deform_conv2d(image, offset, layer.weight, layer.bias, stride=2, padding=1, mask=mask)
    assert torch.equal(layer(image), expected)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_mask_scale_multiplies_the_sigmoid(scale: float, image: Tensor) -> None:
    layer = trained_layer(mask_scale=scale)
    _, twice = (usual := trained_layer()).offsets(image)
    layer.load_state_dict(usual.state_dict())
    _, mask = layer.offsets(image)
    assert torch.equal(mask, scale * (twice / 2))
    assert repr(layer).endswith(f"modulated=True, mask_scale={float(scale)})")
    twin = DeformConv2d.from_conv2d(layer.to_conv2d(), mask_scale=scale)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin.offsets(image)[1], torch.full((2, 9, 9, 7), scale / 2))
    assert torch.equal(torch.jit.script(layer)(image), layer(image))


def test_given_offsets_replace_the_predicted(image: Tensor) -> None:
    layer = trained_layer()
    offset, mask = torch.randn(2, 18, 9, 7), torch.rand(2, 9, 9, 7)
    arguments = (image, offset, layer.weight, layer.bias, (1, 1), (1, 1), (1, 1))
    assert torch.equal(layer(image, offset), deform_conv2d(*arguments))
    assert torch.equal(layer(image, offset, mask), deform_conv2d(*arguments, mask))


def test_offset_bound_squashes_what_is_predicted(image: Tensor) -> None:
    layer = trained_layer(offset_bound=1.5)
    layer.offset_bias.data[:2] = torch.tensor([1e4, -1e4])
    bounded, _ = layer.offsets(image)
    layer.offset_bound = None
    free, _ = layer.offsets(image)
    assert torch.equal(bounded, 1.5 * (2 * free.sigmoid() - 1))
    assert (bounded.amax(), bounded.amin()) == (1.5, -1.5)


def test_sampling_positions_are_the_grid_and_the_offsets(image: Tensor) -> None:
    layer = trained_layer(stride=(2, 1), dilation=(1, 2), offset_groups=2)
    positions = layer.sampling_positions(image)
    offset = layer.offsets(image)[0].reshape(2, 2, 9, 2, 5, 5)
    # Tap (2, 1) of output (3, 4): output * stride - padding + tap * dilation.
    at_start = torch.tensor([3 * 2 - 1 + 2, 4 * 1 - 1 + 1 * 2])
    assert torch.equal(positions[:, :, 2 * 3 + 1, :, 3, 4], offset[:, :, 2 * 3 + 1, :, 3, 4] + at_start)


@pytest.mark.parametrize("padding", ["same", (1, 1)])
def test_sampling_positions_count_from_the_image_where_it_is_padded_first(padding: object, image: Tensor) -> None:
    layer = DeformConv2d(4, 8, (4, 3), padding=padding, padding_mode="zeros" if padding == "same" else "circular")
    positions = layer.sampling_positions(image)
    assert positions[0, 0, 0, :, 0, 0].tolist() == [-1, -1]
    assert positions[0, 0, 11, :, 2, 3].tolist() == [2 - 1 + 3, 3 - 1 + 2]


@pytest.mark.parametrize("masked", [True, False])
def test_without_predictor_it_is_torchvisions_layer(masked: bool) -> None:
    shape = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
    theirs = torchvision.ops.DeformConv2d(6, 2, **shape)
    layer = DeformConv2d(6, 2, **shape, offset_groups=3, predict_offsets=False)
    layer.load_state_dict(theirs.state_dict())
    inputs = [torch.randn(4, 6, 5, 4), torch.randn(4, 36, 2, 3), torch.rand(4, 18, 2, 3)][: 3 if masked else 2]
    actual, same_precision = {"output": layer(*inputs)}, {"output": theirs(*inputs)}
    assert_within_budget(actual, {"output": theirs.double()(*(t.double() for t in inputs))}, same_precision)


def test_a_step_of_training_moves_every_channel_of_the_predictor(image: Tensor) -> None:
    layer = DeformConv2d(4, 8, 3, padding=1)
    layer(image).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert (layer.offset_weight.abs().amax((1, 2, 3)) > 0).all()
    assert (layer.offset_bias.abs() > 0).all()


def test_reset_parameters_draws_weights_and_zeros_the_predictor() -> None:
    layer = trained_layer()
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert not layer.offset_weight.any()
    assert not layer.offset_bias.any()


def test_from_conv2d_takes_over_parameters_hooks_and_mode(image: Tensor) -> None:
    conv, calls = nn.Conv2d(4, 8, 3, padding=1).eval(), []
    conv.weight.requires_grad_(False)
    conv.register_forward_hook(lambda module, *_: calls.append(type(module)))
    conv.note = "kept"
    layer = DeformConv2d.from_conv2d(conv, offset_groups=2)
    layer(image)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert (layer.weight.requires_grad, layer.training, layer.note) == (False, False, "kept")
    assert calls == [DeformConv2d]


def test_to_conv2d_is_the_way_back(image: Tensor) -> None:
    conv = nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2, dtype=image.dtype).eval()
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    layer = DeformConv2d.from_conv2d(conv, offset_groups=2, separable_predictor=True)
    back = layer.to_conv2d()
    assert type(back) is nn.Conv2d
    assert not back.training
    assert vars(back).keys() == vars(conv).keys()
    assert back.weight is conv.weight
    assert list(back.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(back(image), conv(image), rtol=0, atol=0)
    assert len(calls) == 2


def test_from_conv2d_leaves_the_convolution_as_it_was(image: Tensor) -> None:
    conv = nn.Conv2d(4, 8, 3)
    before, description = copy.deepcopy(conv.__dict__).keys(), repr(conv)
    layer = DeformConv2d.from_conv2d(conv, modulated=False, offset_bound=1.0)
    layer.register_forward_hook(lambda *_: pytest.fail("the convolution ran a hook of the layer"))
    layer.register_buffer("extra", torch.zeros(1), persistent=False)
    conv(image)
    assert not conv._non_persistent_buffers_set
    assert (conv.__dict__.keys(), repr(conv)) == (before, description)
    assert conv.state_dict().keys() == {"weight", "bias"}


def test_from_conv2d_refuses_what_is_more_than_its_weight() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    patched = nn.Conv2d(4, 8, 3)
    patched.forward = lambda input: input
    for conv in (Scaled(4, 8, 3), patched, nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3))):
        with pytest.raises(ValueError, match="expected torch's Conv2d, whose weight is all"):
            DeformConv2d.from_conv2d(conv)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_apart(copied: Callable[[nn.Module], nn.Module], image: Tensor) -> None:
    layer = trained_layer(offset_bound=2.0)
    twin = copied(layer)
    assert torch.equal(twin(image), layer(image))
    twin.offset_bias.data.zero_()
    assert layer.offset_bias.all()


@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.ones(1, 4, 8, 8))]
)
def test_torchscript_survives_a_file(convert: Callable[[nn.Module], nn.Module], image: Tensor) -> None:
    layer, file = trained_layer(padding="same", groups=2, offset_groups=2, offset_bound=2.0), io.BytesIO()
    torch.jit.save(convert(layer), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(image), layer(image))


def test_export_keeps_the_operator_whole(image: Tensor) -> None:
    layer = trained_layer()
    exported = torch.export.export(layer, (image,))
    assert torch.ops.dcn_ops.deform_conv2d.default in {node.target for node in exported.graph.nodes}
    assert torch.equal(exported.module()(image), layer(image))


def test_repr_tells_what_is_not_a_plain_convolution() -> None:
    assert repr(DeformConv2d(4, 8, 3, stride=2, offset_groups=2, offset_bound=1.5)) == (
        "DeformConv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), offset_groups=2, modulated=True, offset_bound=1.5)"
    )
    assert repr(DeformConv2d(4, 8, 3, predict_offsets=False)).endswith("predict_offsets=False)")


CHANGES = {
    "as segmentation toolkits do": {"stride": 1, "dilation": 2, "padding": 2},
    "pairs": {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 2)},
    "same": {"stride": 1, "padding": "same"},
    "valid": {"padding": "valid"},
    "one integer in a tuple": {"stride": (1,), "padding": (2,)},
    "circular": {"padding_mode": "circular"},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("separable", [False, True])
def test_the_layer_follows_its_attributes(separable: bool, change: str) -> None:
    shape = {"kernel_size": 3, "stride": 2, "padding": 1}
    plain, layer = nn.Conv2d(4, 4, **shape), DeformConv2d(4, 4, **shape, separable_predictor=separable)
    layer.load_state_dict(plain.state_dict())
    image = torch.randn(2, 4, 9, 12)
    layer(image)
    for name, value in CHANGES[change].items():
        setattr(plain, name, value)
        setattr(layer, name, value)
    # Outside "zeros" nn.Conv2d keeps the padding that it was built with, which is the layer's here.
    torch.testing.assert_close(layer(image), plain(image), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(layer)(image), layer(image))
    assert layer.sampling_positions(image).shape[-2:] == plain(image).shape[-2:]


def test_a_converted_layer_follows_its_attributes_too() -> None:
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer = DeformConv2d.from_conv2d(plain)
    layer.stride, layer.dilation, layer.padding = 1, 2, 2
    image = torch.randn(1, 4, 16, 16)
    assert layer(image).shape[2:] == (16, 16)
    assert (plain.stride, plain.padding) == ((2, 2), (1, 1))


@pytest.mark.parametrize("size", [40, 6])  # of each implementation on the CPU
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("function", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), lambda out: out.add_(1)])
def test_what_follows_may_change_the_output_in_place(function: Callable, groups: int, size: int) -> None:
    layer = DeformConv2d(8, 8, 3, padding=1, groups=groups)
    nn.init.normal_(layer.offset_weight, std=0.1)
    image = torch.randn(2, 8, size, size, requires_grad=True)
    gradients = []
    for out in (layer(image), layer(image).clone()):
        gradients.append(torch.autograd.grad(function(out).square().sum(), [image, *layer.parameters()]))
    torch.testing.assert_close(*gradients)
