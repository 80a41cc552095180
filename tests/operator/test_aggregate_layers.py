"""The layers of DCNv3 and DCNv4 against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from aggregates import Case, Inputs, formula
from torch import Tensor, nn

import dcn_ops
from dcn_ops import ChannelsFirst, DCNv3, DCNv4
from dcn_ops.aggregate import dcnv3

WINDOWS = {
    "official": {"group": 2},
    "strided": {"group": 2, "stride": 2},
    "valid": {"group": 1, "pad": 0, "dilation": (1, 2)},
    "even": {"group": 2, "kernel_size": (2, 4), "pad": (1, 2), "dw_kernel_size": 4},
    "far": {"group": 4, "kernel_size": 3, "pad": 3, "stride": (1, 3), "offset_scale": 0.5},
    "no_centre": {"group": 2, "remove_center": True, "center_feature_scale": True, "offset_scale": 2.0},
    "large": {"group": 2, "kernel_size": 5, "pad": 2, "dw_kernel_size": 3, "center_feature_scale": True},
}
every_window = pytest.mark.parametrize("arguments", WINDOWS.values(), ids=WINDOWS)


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer.double()


def case_of(layer: DCNv3 | DCNv4, image: Tensor) -> Case:
    return Case(
        batch=image.shape[0],
        channels=layer.channels,
        size=tuple(image.shape[1:3]),
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=tuple(layer.pad),
        dilation=tuple(layer.dilation),
        groups=layer.group,
        offset_scale=layer.offset_scale,
        remove_center=layer.remove_center,
    )


def at_centres(features: Tensor, case: Case) -> Tensor:
    """Return the features in the middle of each window, or of the nearest pixel."""
    height, width = case.size
    rows, columns = case.window.output_size(case.size)
    half = [(d * (k - 1)) // 2 for d, k in zip(case.dilation, case.kernel, strict=True)]
    y = [min(max(i * case.stride[0] - case.padding[0] + half[0], 0), height - 1) for i in range(rows)]
    x = [min(max(i * case.stride[1] - case.padding[1] + half[1], 0), width - 1) for i in range(columns)]
    return features[:, y][:, :, x]


def depthwise(conv: nn.Conv2d, image: Tensor) -> Tensor:
    top, left = ((k - 1) // 2 for k in conv.kernel_size)
    bottom, right = (k // 2 for k in conv.kernel_size)
    padded = F.pad(image.permute(0, 3, 1, 2), (left, right, top, bottom))
    return F.conv2d(padded, conv.weight, conv.bias, groups=image.shape[3]).permute(0, 2, 3, 1)


def mixed(layer: DCNv3 | DCNv4, out: Tensor, values: Tensor, query: Tensor, case: Case) -> Tensor:
    if layer.center_feature_scale_proj_weight is None:
        return out
    scale = (query @ layer.center_feature_scale_proj_weight.T + layer.center_feature_scale_proj_bias).sigmoid()
    scale = scale.repeat_interleave(case.channels // case.groups, -1)
    return out * (1 - scale) + at_centres(values, case) * scale


@every_window
def test_dcnv3_is_its_formula(arguments: dict) -> None:
    layer, image = randomised(DCNv3(8, **arguments)), torch.randn(2, 6, 7, 8, dtype=torch.float64)
    case = case_of(layer, image)
    values = layer.input_proj(image)
    query = F.gelu(layer.dw_conv[1][1](at_centres(depthwise(layer.dw_conv[0], image), case)))
    mask = layer.mask(query).unflatten(-1, (case.groups, -1)).softmax(-1).flatten(-2)
    out = formula(Inputs(values, layer.offset(query), mask), case)
    expected = layer.output_proj(mixed(layer, out, values, query, case))
    torch.testing.assert_close(layer(image), expected, rtol=0, atol=1e-10)


@every_window
@pytest.mark.parametrize("pointwise", [True, False])
def test_dcnv4_is_its_formula(arguments: dict, pointwise: bool) -> None:
    layer = randomised(DCNv4(8, without_pointwise=not pointwise, **arguments))
    image = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    case = case_of(layer, image)
    values = layer.value_proj(image) if pointwise else image
    query = image if layer.offset_mask_dw is None else depthwise(layer.offset_mask_dw, image)
    taps = case.window.taps
    packed = layer.offset_mask(at_centres(query, case))
    assert packed.shape[-1] % 8 == 0
    by_group = packed[..., : 3 * case.groups * taps].unflatten(-1, (case.groups, 3 * taps))
    out = formula(
        Inputs(values, by_group[..., : 2 * taps].flatten(-2), by_group[..., 2 * taps :].flatten(-2)), case
    )
    out = mixed(layer, out, values, out, case)
    expected = layer.output_proj(out) if pointwise else out
    torch.testing.assert_close(layer(image), expected, rtol=0, atol=1e-10)


def test_names_and_shapes_are_the_authors() -> None:
    shapes = {name: list(p.shape) for name, p in DCNv3(32, group=2, center_feature_scale=True).named_parameters()}
    assert shapes == {
        "center_feature_scale_proj_weight": [2, 32],
        "center_feature_scale_proj_bias": [2],
        "dw_conv.0.weight": [32, 1, 3, 3],
        "dw_conv.0.bias": [32],
        "dw_conv.1.1.weight": [32],
        "dw_conv.1.1.bias": [32],
        "offset.weight": [36, 32],
        "offset.bias": [36],
        "mask.weight": [18, 32],
        "mask.bias": [18],
        "input_proj.weight": [32, 32],
        "input_proj.bias": [32],
        "output_proj.weight": [32, 32],
        "output_proj.bias": [32],
    }
    shapes = {
        name: list(p.shape)
        for name, p in DCNv4(32, group=2, dw_kernel_size=3, output_bias=False).named_parameters()
    }
    assert shapes == {
        "offset_mask_dw.weight": [32, 1, 3, 3],
        "offset_mask_dw.bias": [32],
        "offset_mask.weight": [56, 32],  # 54, up to a multiple of 8
        "offset_mask.bias": [56],
        "value_proj.weight": [32, 32],
        "value_proj.bias": [32],
        "output_proj.weight": [32, 32],
    }


def test_a_fresh_dcnv3_averages_its_window_and_a_fresh_dcnv4_returns_its_bias() -> None:
    image = torch.randn(2, 5, 6, 8)
    layer = DCNv3(8, group=2)
    means = F.avg_pool2d(layer.input_proj(image).permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(image), layer.output_proj(means))
    assert torch.equal(DCNv4(8)(image), torch.zeros_like(image))


def test_dcnv4_takes_tokens_of_any_image() -> None:
    layer = randomised(DCNv4(8, stride=2))
    image = torch.randn(2, 6, 4, 8, dtype=torch.float64)
    expected = layer(image)
    assert expected.shape == (2, 3, 2, 8)
    assert torch.equal(layer(image.flatten(1, 2), (6, 4)), expected.flatten(1, 2))
    square = image[:, :4]
    assert torch.equal(layer(square.flatten(1, 2)), layer(square).flatten(1, 2))
    with pytest.raises(ValueError, match=r"pass shape=\(height, width\)"):
        layer(image.flatten(1, 2))


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_channels_first(kind: type) -> None:
    layer = randomised(kind(8, stride=2))
    image = torch.randn(2, 8, 6, 4, dtype=torch.float64)
    out = ChannelsFirst(layer)(image)
    assert torch.equal(out, layer(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_layers_train_in_bfloat16_and_under_autocast(kind: type) -> None:
    image = torch.randn(2, 6, 5, 8)
    for dtype, layer in ((torch.bfloat16, kind(8).bfloat16()), (torch.float32, kind(8))):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            out = layer(image.to(dtype))
        out.float().square().sum().backward()
        assert out.dtype == torch.bfloat16
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [DCNv3, DCNv4])
def test_layers_compile_and_export_with_other_sizes(kind: type) -> None:
    layer, image = randomised(kind(8, stride=(2, 1))).eval(), torch.randn(3, 8, 9, 8, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), layer(image))
    dims = {i: torch.export.Dim(name, min=4, max=64) for i, name in enumerate("nhw")}
    program = torch.export.export(layer, (torch.randn(4, 8, 9, 8, dtype=torch.float64),), dynamic_shapes=(dims,))
    other = torch.randn(5, 7, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(program.module()(other), layer(other))


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (DCNv3, {"group": 3}, ValueError, "group to divide the channels, got group=3 and channels=8"),
        (DCNv4, {"kernel_size": (3, 3, 3)}, ValueError, "kernel_size to be an integer or a pair"),
        (DCNv4, {"group": 2.0}, TypeError, "group to be an integer"),
        (DCNv3, {"kernel_size": 2, "remove_center": True}, ValueError, "an odd kernel"),
    ],
)
def test_arguments_that_make_no_layer(kind: type, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kind(8, **arguments)


def test_a_channels_first_image_is_refused_with_the_cure() -> None:
    for layer in (DCNv3(8), DCNv4(8)):
        with pytest.raises(ValueError, match=r"\[N, H, W, 8\].*dcn_ops\.ChannelsFirst"):
            layer(torch.zeros(1, 8, 5, 5))
    assert "group=4" in repr(dcn_ops.DCNv4(8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [1, 9, 16])
def test_softmax_over_few_taps_is_torchs(taps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (9 * torch.randn(2, 3, 4, 5, taps)).to(dtype).requires_grad_()
    expected, actual = logits.softmax(-1), dcnv3._softmax(logits)
    cotangent = torch.randn_like(expected)
    of_logits = [torch.autograd.grad(values, logits, cotangent)[0] for values in (actual, expected)]
    absolute = 8 * torch.finfo(dtype).eps  # gradients may cancel
    torch.testing.assert_close(actual, expected, rtol=absolute, atol=absolute)
    torch.testing.assert_close(*of_logits, rtol=absolute, atol=absolute)


def test_exported_layer_has_the_plain_softmax() -> None:
    program = torch.export.export(dcn_ops.DCNv3(32, group=2), (torch.randn(1, 5, 6, 32),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "aten.softmax.int" in called
    assert not [name for name in called if "aten.t." in name or "transpose" in name]
