"""The contract of the operator: schemas, kernels, fake kernels, autograd, vmap and autocast.

Importing this module registers ``torch.ops.dcn_ops.deform_conv2d`` and its backward. It imports torch alone.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcn_ops import choice, cpu, depthwise, fused, tiny
from dcn_ops.check import check_arguments, check_gradient
from dcn_ops.geometry import Conv
from dcn_ops.private import (
    below_autograd,
    is_transforming,
    tag_compile_caches,
    trace_through,
)

_INTEGERS = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt offset_groups"
_TENSORS = "Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask"

# A module global: the operators live as long as this object.
_library = torch.library.Library("dcn_ops", "DEF")
_library.define(f"deform_conv2d({_TENSORS}, {_INTEGERS}) -> Tensor")
# needs: which gradients to compute, in the order input, offset, weight, bias, mask; the others are None.
_library.define(
    f"deform_conv2d_backward(Tensor grad, {_TENSORS}, {_INTEGERS}, bool[5] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_forward_op = torch.ops.dcn_ops.deform_conv2d.default
_backward_op = torch.ops.dcn_ops.deform_conv2d_backward.default

Gradients = tuple[Tensor | None, ...]


# Kernels of every device: an implementation each for GPUs, small images, large depthwise kernels, and the rest.


def _forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    *integers: Any,
    traced: bool = False,
) -> Tensor:
    conv = check_arguments(input, offset, weight, bias, mask, *integers)
    return _implementation(input, offset, weight, conv, traced).forward(input, offset, weight, bias, mask, conv)


def _backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    *integers: Any,
    traced: bool = False,
) -> Gradients:
    conv = check_arguments(input, offset, weight, bias, mask, *integers[:-1])
    check_gradient(grad, input, weight, conv)
    kernels, needs = _implementation(input, offset, weight, conv, traced), list(integers[-1])
    if not (needs[0] and kernels.ATOMIC and torch.are_deterministic_algorithms_enabled()):
        return kernels.backward(grad, input, offset, weight, mask, conv, needs=needs)
    # Its order of additions gives the gradient of the input other last bits in every run; the composition sorts.
    composition = _composition(input, offset, weight, conv, traced)
    of_input = composition.backward(grad, input, offset, weight, mask, conv, needs=[True, *[False] * 4])[0]
    return of_input, *kernels.backward(grad, input, offset, weight, mask, conv, needs=[False, *needs[1:]])[1:]


def _implementation(input: Tensor, offset: Tensor, weight: Tensor, conv: Conv, traced: bool) -> Any:
    name = choice.implementation()
    if name == "composition" or (name == "auto" and not input.is_cuda):
        return _composition(input, offset, weight, conv, traced)
    if kernels := _triton():
        refusal = kernels.refusal(input, weight)
    else:
        refusal = "Triton is not installed; pip install triton"
    if not refusal:
        return kernels
    if name == "auto":
        return _composition(input, offset, weight, conv, traced)
    raise ValueError(f'{refusal}, or call dcn_ops.set_implementation("auto")')


@cache
def _triton() -> Any:
    """Return the Triton kernels; None where Triton, which torch itself asks for on Linux alone, is missing."""
    if importlib.util.find_spec("triton") is None:
        return None
    from dcn_ops.triton import launch

    return launch


def _composition(input: Tensor, offset: Tensor, weight: Tensor, conv: Conv, traced: bool) -> Any:
    if traced and fused.suits(input, weight, conv):
        return fused
    # Compiled, the many small kernels of the others are a few, and calls cost nothing.
    if not traced and tiny.suits(input, offset, weight, conv):
        return tiny
    return depthwise if depthwise.suits(input, weight, conv) else cpu


_library.impl("deform_conv2d", _forward, "CompositeExplicitAutograd")
_library.impl("deform_conv2d_backward", _backward, "CompositeExplicitAutograd")


# The compiler fuses what those kernels are made of, instead of calling an opaque operator.

trace_through("dcn_ops::deform_conv2d", partial(_forward, traced=True), _library)
trace_through("dcn_ops::deform_conv2d_backward", partial(_backward, traced=True), _library)
tag_compile_caches(Path(__file__).parent)


# Fake kernels: the same check, and the strides that the real kernels return.


@torch.library.register_fake("dcn_ops::deform_conv2d", lib=_library)
def _forward_fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
) -> Tensor:
    conv = check_arguments(input, offset, weight, bias, mask, *integers)
    return _empty_channels_last(input, (input.shape[0], weight.shape[0], *conv.output_size(input.shape[2:])))


@torch.library.register_fake("dcn_ops::deform_conv2d_backward", lib=_library)
def _backward_fake(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    *integers: Any,
) -> Gradients:
    conv = check_arguments(input, offset, weight, bias, mask, *integers[:-1])
    check_gradient(grad, input, weight, conv)
    gradients = (
        _empty_channels_last(input, input.shape),
        torch.empty_like(offset),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
        None if mask is None else torch.empty_like(mask),
    )
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, integers[-1], strict=True))


def _empty_channels_last(like: Tensor, shape: Any) -> Tensor:
    n, c, h, w = shape
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


# Autograd: saves the inputs alone, asks only for the gradients that are needed.


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keyset: Any,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        *integers: Any,
    ) -> Tensor:
        ctx.save_for_backward(input, offset, weight, bias, mask)
        ctx.integers = integers
        return below_autograd(_forward_op, _forward, keyset, input, offset, weight, bias, mask, *integers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        needs = ctx.needs_input_grad[1:6]
        gradients = _backward_op(grad, *ctx.saved_tensors, *ctx.integers, needs)
        return None, *gradients, *(None for _ in ctx.integers)


def _forward_autograd(keyset: Any, *args: Any) -> Tensor:
    if is_transforming():  # the reference supports every transform
        return _reference(*args)
    if _needs_graph(*args[:5]):
        return _DeformConv2d.apply(keyset, *args)
    return below_autograd(_forward_op, _forward, keyset, *args)


def _backward_autograd(keyset: Any, *args: Any) -> Gradients:
    """Differentiate the reference where the gradients themselves need a graph, as under create_graph=True."""
    if not _needs_graph(*args[:6]):
        return below_autograd(_backward_op, _backward, keyset, *args)
    grad, *tensors = args[:6]
    integers, needs = args[6:-1], args[-1]
    # Aliases cut the graph: the offset may itself be a function of the input.
    tensors = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [t for t, needed in zip(tensors, needs, strict=True) if needed]
    gradients = iter(torch.autograd.grad(_reference(*tensors, *integers), wanted, grad, create_graph=True))
    return tuple(next(gradients) if needed else None for needed in needs)


def _reference(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
) -> Tensor:
    from dcn_ops import reference

    conv = check_arguments(input, offset, weight, bias, mask, *integers)
    return reference.forward(input, offset, weight, bias, mask, conv)


def _needs_graph(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


_library.impl("deform_conv2d", _forward_autograd, "Autograd", with_keyset=True)
_library.impl("deform_conv2d_backward", _backward_autograd, "Autograd", with_keyset=True)


# vmap


@torch.library.register_vmap("dcn_ops::deform_conv2d", lib=_library)
def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    from dcn_ops import vmap

    return vmap.forward(info, in_dims, *args)


# Autocast: features and weights in the autocast dtype, sampling positions and mask in float32.


def _autocast(device: str) -> Callable[..., Tensor]:
    def kernel(
        input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
    ) -> Tensor:
        dtype = torch.get_autocast_dtype(device)

        def cast(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
            # As torch's own rules do, leave float64 and what is not floating alone.
            if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
                return tensor
            return tensor.to(to)

        with torch.autocast(device, enabled=False):
            return _forward_op(
                cast(input, dtype),
                cast(offset, torch.float32),
                cast(weight, dtype),
                cast(bias, dtype),
                cast(mask, torch.float32),
                *integers,
            )

    return kernel


_library.impl("deform_conv2d", _autocast("cpu"), "AutocastCPU")
_library.impl("deform_conv2d", _autocast("cuda"), "AutocastCUDA")
