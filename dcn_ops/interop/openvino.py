"""The operators in OpenVINO: extensions for ``openvino.convert_model``, from torch and from ONNX.

Importing this module doesn't import OpenVINO.
"""

import math
from typing import Any

import torch

from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.geometry import Conv

# Names in TorchScript and in torch.export.
NAMES = ("dcn_ops::deform_conv2d", "dcn_ops.deform_conv2d.default")
AGGREGATES = ("dcn_ops::deform_aggregate", "dcn_ops.deform_aggregate.default")


def extension() -> list[Any]:
    """Return extensions for ``openvino.convert_model(..., extension=dcn_ops.openvino.extension())``.

    They convert deform_conv2d in a module, in a traced or exported program and, as ``DeformConv``, in an ONNX file.
    It becomes OpenVINO's DeformableConvolution. With ``groups`` that is 70 times slower than it should be, so then
    it becomes GridSample and a grouped 1x1 convolution. deform_aggregate becomes GridSample and a sum.

    Raises:
        ImportError: Where OpenVINO is not installed.
    """
    from openvino.frontend import onnx, pytorch

    return [
        *(pytorch.ConversionExtension(name, _convert_torch) for name in NAMES),
        *(pytorch.ConversionExtension(name, _convert_aggregate) for name in AGGREGATES),
        onnx.ConversionExtension("DeformConv", _convert_onnx),
    ]


def _convert_torch(node: Any) -> list[Any]:
    input, offset, weight = (node.get_input(i) for i in range(3))
    bias, mask = _optional(node, 3), _optional(node, 4)
    stride, padding, dilation, groups, offset_groups = (node.get_values_from_const_input(i) for i in range(5, 10))
    conv = Conv(_kernel(weight), list(stride), list(padding), list(dilation), int(groups), int(offset_groups))
    return _build(input, offset, weight, bias, mask, conv, [*padding, *padding]).outputs()


def _convert_onnx(node: Any) -> list[Any]:
    input, weight, offset = (node.get_input(i) for i in range(3))
    pads = node.get_attribute("pads", [0, 0, 0, 0])
    conv = Conv(
        _kernel(weight),
        node.get_attribute("strides", [1, 1]),
        pads[:2],
        node.get_attribute("dilations", [1, 1]),
        node.get_attribute("group", 1),
        node.get_attribute("offset_group", 1),
    )
    return _build(input, offset, weight, _optional(node, 3), _optional(node, 4), conv, pads).outputs()


def _optional(node: Any, i: int) -> Any:
    # None, or an omitted input in the middle, is a node without a type.
    given = i < node.get_input_size() and node.get_input(i).get_element_type().is_static()
    return node.get_input(i) if given else None


def _kernel(weight: Any) -> list[int]:
    return [dimension.get_length() for dimension in list(weight.get_partial_shape())[2:]]


def _build(input: Any, offset: Any, weight: Any, bias: Any, mask: Any, conv: Conv, pads: list[int]) -> Any:
    from openvino import opset15 as ops

    build = _whole if conv.groups == 1 else _decomposed
    out = build(input, offset, weight, mask, conv, pads)
    return out if bias is None else ops.add(out, ops.reshape(bias, [1, -1, 1, 1], special_zero=False))


def _whole(input: Any, offset: Any, weight: Any, mask: Any, conv: Conv, pads: list[int]) -> Any:
    from openvino import opset15 as ops

    return ops.deformable_convolution(
        input,
        offset,
        weight,
        list(conv.stride),
        pads[:2],
        pads[2:],
        list(conv.dilation),
        mask=mask,
        deformable_group=conv.offset_groups,
        bilinear_interpolation_pad=True,  # corners outside count as 0
    )


def _decomposed(input: Any, offset: Any, weight: Any, mask: Any, conv: Conv, pads: list[int]) -> Any:
    """Do the same as ``dcn_ops/interop/portable.py``; height and width may be dynamic."""
    from openvino import opset15 as ops

    k, (rows, cols) = conv.taps, (_sizes(offset, 2, "i64"), _sizes(offset, 3, "i64"))
    # From the weight, which is a constant: the channels of the image may be unknown.
    filters, depth = (dimension.get_length() for dimension in list(weight.get_partial_shape())[:2])
    channels = depth * conv.groups
    # [N * G, K, 2, Ho, Wo] -> two of [N * G, K, Ho, Wo]
    offsets = ops.split(_reshape(offset, -1, k, 2, rows, cols), 2, 2)
    y, x = (_position(ops.squeeze(offsets.output(i), [2]), i, conv, input) for i in (0, 1))
    grid = ops.concat([_reshape(p, 0, -1, cols, 1) for p in (x, y)], 3)
    image = _reshape(input, -1, channels // conv.offset_groups, _sizes(input, 2, "i64"), _sizes(input, 3, "i64"))
    samples = ops.grid_sample(image, grid, {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"})
    if mask is not None:
        samples = ops.multiply(samples, _reshape(mask, -1, 1, _times(rows, k), cols))
    columns = _reshape(samples, -1, channels * k, rows, cols)
    filters = ops.reshape(weight, [conv.groups, filters // conv.groups, -1, 1, 1], special_zero=False)
    return ops.group_convolution(columns, filters, [1, 1], [0, 0], [0, 0], [1, 1])


def _position(offset: Any, axis: int, conv: Conv, input: Any) -> Any:
    """Return positions [N * G, K, Ho, Wo] scaled to [-1, 1]."""
    import numpy as np
    from openvino import opset15 as ops

    out = ops.squeeze(_sizes(offset, 2 + axis, "i64"), [0])
    steps = ops.multiply(ops.range(np.int64(0), out, np.int64(1), "f32"), np.float32(conv.stride[axis]))
    steps = ops.reshape(steps, [-1, 1] if axis == 0 else [1, -1], special_zero=False)
    taps = np.arange(conv.kernel_size[axis], dtype=np.float32) * conv.dilation[axis] - conv.padding[axis]
    taps = np.repeat(taps, conv.kernel_size[1]) if axis == 0 else np.tile(taps, conv.kernel_size[0])  # [K]
    position = ops.add(ops.add(ops.convert(offset, "f32"), steps), taps[:, None, None])
    return _scaled(position, _sizes(input, 2 + axis, "f32"))


def _convert_aggregate(node: Any) -> list[Any]:
    """Do the same as ``dcn_ops/interop/aggregate.py``; all sizes except channels may be dynamic."""
    from openvino import opset15 as ops

    input, offset, mask = (node.get_input(i) for i in range(3))
    kernel, stride, padding, dilation = (list(node.get_values_from_const_input(i)) for i in range(3, 7))
    groups, scale, remove_center = (node.get_values_from_const_input(i) for i in range(7, 10))
    window = Window(kernel, stride, padding, dilation, int(groups), float(scale), bool(remove_center))
    k, rows, cols = window.taps, _sizes(offset, 1, "i64"), _sizes(offset, 2, "i64")
    channels = list(input.get_partial_shape())[3].get_length()
    # [N, Ho, Wo, G, K * 2] -> two of [N * G, Ho, Wo, K]
    offsets = ops.split(_by_group(offset, rows, cols, window, k, 2), 4, 2)
    x, y = (ops.squeeze(offsets.output(i), [4]) for i in (0, 1))
    x, y = (_tap_position(offset, axis, window, input) for offset, axis in ((x, 1), (y, 0)))
    flat = _times(cols, k)
    grid = ops.concat([_reshape(p, -1, rows, flat, 1) for p in (x, y)], 3)
    sizes = (_sizes(input, 1, "i64"), _sizes(input, 2, "i64"))
    image = _reshape(ops.transpose(input, [0, 3, 1, 2]), -1, channels // window.groups, *sizes)
    samples = ops.grid_sample(image, grid, {"align_corners": False, "mode": "bilinear", "padding_mode": "zeros"})
    weights = _reshape(_by_group(mask, rows, cols, window, k), -1, 1, rows, flat)
    weighted = _reshape(ops.multiply(samples, weights), 0, 0, rows, cols, k)
    sums = _reshape(ops.reduce_sum(weighted, [4]), -1, channels, rows, cols)
    return ops.transpose(sums, [0, 2, 3, 1]).outputs()


def _by_group(maps: Any, rows: Any, cols: Any, window: Window, *last: int) -> Any:
    """Return maps [N, Ho, Wo, G * ..] as [N * G, Ho, Wo, *last]."""
    from openvino import opset15 as ops

    by_group = ops.transpose(_reshape(maps, -1, rows, cols, window.groups, math.prod(last)), [0, 3, 1, 2, 4])
    return _reshape(by_group, -1, rows, cols, *last)


def _tap_position(offset: Any, axis: int, window: Window, input: Any) -> Any:
    """Return positions [N * G, Ho, Wo, K] scaled to [-1, 1]."""
    import numpy as np
    from openvino import opset15 as ops

    out = ops.squeeze(_sizes(offset, 1 + axis, "i64"), [0])
    steps = ops.multiply(ops.range(np.int64(0), out, np.int64(1), "f32"), np.float32(window.stride[axis]))
    steps = ops.reshape(steps, [-1, 1, 1] if axis == 0 else [1, -1, 1], special_zero=False)
    taps = window.grid((0, 1), 1, torch.float32, torch.device("cpu"))[axis][0].numpy()  # [K]
    scaled = ops.multiply(ops.convert(offset, "f32"), np.float32(window.offset_scale))
    return _scaled(ops.add(ops.add(scaled, steps), taps), _sizes(input, 1 + axis, "f32"))


def _scaled(position: Any, size: Any) -> Any:
    import numpy as np
    from openvino import opset15 as ops

    # Move NaN and positions far away just outside the image, where samples are 0.
    position = ops.select(ops.is_nan(position), np.float32(-2), position)
    position = ops.minimum(ops.maximum(position, np.float32(-2)), ops.add(size, np.float32(1)))
    scaled = ops.divide(ops.add(ops.multiply(position, np.float32(2)), np.float32(1)), size)
    return ops.subtract(scaled, np.float32(1))


def _sizes(tensor: Any, axis: int, dtype: str) -> Any:
    from openvino import opset15 as ops

    return ops.convert(ops.gather(ops.shape_of(tensor), [axis], 0), dtype)  # [1]


def _times(size: Any, factor: int) -> Any:
    import numpy as np
    from openvino import opset15 as ops

    return ops.multiply(size, np.int64(factor))


def _reshape(tensor: Any, *sizes: Any) -> Any:
    import numpy as np
    from openvino import opset15 as ops

    parts = [np.array([size], dtype=np.int64) if isinstance(size, int) else size for size in sizes]
    return ops.reshape(tensor, ops.concat(parts, 0), special_zero=True)
