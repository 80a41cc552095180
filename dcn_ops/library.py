"""The contract of the operator: schemas, kernels, fake kernels, autograd, vmap and autocast.

Importing this module registers ``torch.ops.dcn_ops.deform_conv2d`` and its backward. It imports torch alone.
"""

import importlib.util
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dcn_ops import cpu, depthwise, fused, settings, tiny
from dcn_ops.check import check_arguments, check_gradient
from dcn_ops.geometry import Conv, empty_channels_last
from dcn_ops.private import (
    autocast_keys,
    below_autograd,
    has_device_kernel,
    is_ahead_of_time,
    is_transforming,
    trace_through,
)

_INTEGERS = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt offset_groups"
_TENSORS = "Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask"

# A module global: the operators live as long as this object.
_library = torch.library.Library("dcn_ops", "DEF")
# Every layout of the arguments will do, and none changes that of the results: Inductor need not transpose.
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
_library.define(f"deform_conv2d({_TENSORS}, {_INTEGERS}) -> Tensor", tags=_TAGS)
# needs: which gradients to compute, in the order input, offset, weight, bias, mask; the others are None.
_library.define(
    f"deform_conv2d_backward(Tensor grad, {_TENSORS}, {_INTEGERS}, bool[5] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
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
    kernels = _implementation(input, offset, weight, conv, traced, mask)
    return kernels.forward(input, offset, weight, bias, mask, conv)


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
    kernels, needs = _implementation(input, offset, weight, conv, traced, mask, grad), list(integers[-1])
    if not (needs[0] and kernels.ATOMIC and torch.are_deterministic_algorithms_enabled()):
        return kernels.backward(grad, input, offset, weight, mask, conv, needs=needs)
    # Its order of additions gives the gradient of the input other last bits in every run; the composition sorts.
    composition = _composition(input, offset, weight, conv, traced, mask, grad)
    of_input = composition.backward(grad, input, offset, weight, mask, conv, needs=[True, *[False] * 4])[0]
    return of_input, *kernels.backward(grad, input, offset, weight, mask, conv, needs=[False, *needs[1:]])[1:]


def _implementation(
    input: Tensor, offset: Tensor, weight: Tensor, conv: Conv, traced: bool, *others: Tensor | None
) -> Any:
    name = settings.current().implementation
    if name == "composition" or (name == "auto" and not input.is_cuda):
        return _composition(input, offset, weight, conv, traced, *others)
    if kernels := _triton():
        refusal = kernels.refusal(input, weight)
    else:
        refusal = "Triton is not installed; pip install triton"
    if not refusal:
        return kernels
    if name == "auto":
        return _composition(input, offset, weight, conv, traced, *others)
    raise ValueError(f'{refusal}, or call dcn_ops.set_implementation("auto")')


@cache
def _triton() -> Any:
    """Return the Triton kernels; None where Triton, which torch itself asks for on Linux alone, is missing."""
    if importlib.util.find_spec("triton") is None:
        return None
    from dcn_ops.triton import launch

    return launch


def _composition(
    input: Tensor, offset: Tensor, weight: Tensor, conv: Conv, traced: bool, *others: Tensor | None
) -> Any:
    if traced and fused.suits(input, weight, conv):
        return fused
    # Compiled, the many small kernels of the others are a few, and calls cost nothing.
    if not traced and tiny.suits(input, offset, weight, conv, *others):
        return tiny
    return depthwise if depthwise.suits(input, weight, conv) else cpu


_library.impl("deform_conv2d", _forward, "CompositeExplicitAutograd")
_library.impl("deform_conv2d_backward", _backward, "CompositeExplicitAutograd")


# The compiler fuses what those kernels are made of, instead of calling an opaque operator.


def _stays_whole(*args: Any) -> bool:
    """Tell whether the compiler gets the operator as one node, which runs as it does eagerly.

    That is what the caller wants, somebody registered a kernel for a device, or sizes are symbols. With symbols
    Inductor would take minutes to simplify the index formulas, and work of an unknown size could not be cut into
    pieces. A package that is compiled ahead of time has no such choice: it runs where this library isn't installed.
    """
    if settings.current().whole_operators or has_device_kernel(_forward_op) or has_device_kernel(_backward_op):
        return True
    sizes = tree_leaves([list(arg.shape) if isinstance(arg, Tensor) else arg for arg in args])
    return any(isinstance(size, torch.SymInt) for size in sizes) and not is_ahead_of_time()


trace_through("dcn_ops::deform_conv2d", partial(_forward, traced=True), _stays_whole, _library)
trace_through("dcn_ops::deform_conv2d_backward", partial(_backward, traced=True), _stays_whole, _library)
settings.tag_compile_caches()


# Fake kernels: the same check, and the strides that the real kernels return.


@torch.library.register_fake("dcn_ops::deform_conv2d", lib=_library)
def _forward_fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
) -> Tensor:
    conv = check_arguments(input, offset, weight, bias, mask, *integers)
    return empty_channels_last(input, (input.shape[0], weight.shape[0], *conv.output_size(input.shape[2:])))


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
        empty_channels_last(input),
        empty_channels_last(offset),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
        None if mask is None else empty_channels_last(mask),
    )
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, integers[-1], strict=True))


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
        ctx.settings = settings.changes()
        return below_autograd(_forward_op, _forward, keyset, input, offset, weight, bias, mask, *integers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        needs = ctx.needs_input_grad[1:6]
        # Autograd may call this from a thread of its own.
        with settings.restored(ctx.settings) if ctx.settings else nullcontext():
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


def _autocast(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
) -> Tensor:
    device = input.device.type
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


for _key in autocast_keys():
    _library.impl("deform_conv2d", _autocast, _key)
