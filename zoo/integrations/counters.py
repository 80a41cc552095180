"""Handles for libraries that count multiply-adds, which otherwise count a deformable operator as nothing.

torch's own ``FlopCounterMode`` needs none: ``import zoo`` registers the formulas, which the handles here read. A
sampled value counts four multiply-adds. Nothing here imports one of the libraries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

import dcn_ops.interop.flops  # noqa: F401  (registers the formulas)
from dcn_ops import DCNv3, DCNv4, DeformConv2d
from zoo.flops import conv_flops
from zoo.layers import DEFORMABLE

Handle = Callable[..., Any]

_OPERATORS = (torch.ops.dcn_ops.deform_conv2d, torch.ops.dcn_ops.deform_aggregate)


def fvcore_handles() -> dict[str, Handle]:
    """Return handles for fvcore, and for mmengine, which has the same analysis.

    ``FlopCountAnalysis(model, images).set_op_handle(**fvcore_handles())``
    """
    return {str(operator).replace(".", "::"): _of_trace(operator) for operator in _OPERATORS}


def ptflops_hooks() -> dict[Any, Handle]:
    """Return hooks for the "aten" backend of ptflops.

    The "pytorch" backend counts functions of Python. It sees those of an implementation, and none of a layer's.

    ``get_model_complexity_info(model, (3, 224, 224), backend="aten", custom_modules_hooks=ptflops_hooks())``
    """
    return {operator: _of_call(operator) for operator in _OPERATORS}


def calflops_hooks() -> dict[type[nn.Module], Handle]:
    """Return hooks for calflops, which takes them in a dict of its own.

    It also counts the functions that an implementation calls, of which there are none on the meta device:

    ``calflops.pytorch_ops.MODULE_HOOK_MAPPING.update(calflops_hooks())``
    ``calculate_flops(copy.deepcopy(model).to("meta"), (1, 3, 224, 224))``
    """
    return dict.fromkeys((*_convolutions(), DCNv3, DCNv4), _calflops)


def thop_ops() -> dict[type[nn.Module], Handle]:
    """Return hooks for thop, only of ``DeformConv2d``.

    ``thop.profile(model, (images,), custom_ops=thop_ops())``
    """
    return dict.fromkeys(_convolutions(), _thop)


def _convolutions() -> tuple[type[nn.Module], ...]:
    return tuple(DEFORMABLE.values())  # the libraries look for the exact class


def _multiply_adds(operator: Any, arguments: Sequence[Any], output: Any) -> int:
    """Return half of what torch counts; arguments and output are tensors or their shapes."""
    return flop_registry[operator](*arguments, out_val=output) // 2


def _of_trace(operator: Any) -> Handle:
    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:  # values of TorchScript
        shapes = [v.type().sizes() if v.isCompleteTensor() else v.toIValue() for v in inputs]
        return _multiply_adds(operator, shapes, outputs[0].type().sizes())

    return handle


def _of_call(operator: Any) -> Handle:
    return lambda arguments, outputs: _multiply_adds(operator, arguments, outputs[0])


def _thop(layer: Any, _: Any, output: torch.Tensor) -> None:
    """Count the operator and the predictor: thop sees neither."""
    layer.total_ops += conv_flops(layer, output.numel() // layer.out_channels) // 2


def _calflops(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Count the operator alone: calflops sees the predictor's convolutions and products itself."""
    if isinstance(layer, DeformConv2d):
        shapes = (inputs[0].shape, None, layer.weight.shape)
        counted = _multiply_adds(torch.ops.dcn_ops.deform_conv2d, shapes, output.shape)
    else:
        counted = 4 * output.numel() * layer.taps
    layer.__macs__ += counted
    layer.__flops__ += 2 * counted
