"""The contract of the operator: schemas, kernels, fake kernels, autograd, vmap and autocast.

Importing this module registers ``torch.ops.dcn_ops.deform_conv2d`` and its backward. It imports torch alone.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from dcn_ops.conv import reference, vmap
from dcn_ops.conv.check import check_gradient
from dcn_ops.conv.kernels.kernel import Gradients
from dcn_ops.conv.kernels.registry import calls_native, choose
from dcn_ops.conv.problem import make_problem
from dcn_ops.sampling.geometry import empty_channels_last
from dcn_ops.settings import changes, current, restored, tag_compile_caches
from dcn_ops.torch_internals.compiler import is_ahead_of_time, trace_through
from dcn_ops.torch_internals.dispatch import (
    HAS_KEYSETS,
    autocast_keys,
    below_autograd,
    has_device_kernel,
    is_transforming,
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

# Kernels of every device: the registry knows which.


def _forward(*arguments: Any, traced: bool = False) -> Tensor:
    problem = make_problem(*arguments)
    return choose(problem, traced=traced).forward(problem)


def _backward(grad: Tensor, *arguments: Any, traced: bool = False) -> Gradients:
    problem, needs = make_problem(*arguments[:-1]), list(arguments[-1])
    check_gradient(grad, problem.input, problem.weight, problem.conv)
    kernel = choose(problem, grad, traced=traced)
    if not (needs[0] and not kernel.DETERMINISTIC and torch.are_deterministic_algorithms_enabled()):
        return kernel.backward(grad, problem, needs)
    # Its order of additions gives the gradient of the input other last bits in every run.
    sorting = choose(problem, grad, traced=traced, deterministic=True)
    of_input = sorting.backward(grad, problem, [True, *[False] * 4])[0]
    return of_input, *kernel.backward(grad, problem, [False, *needs[1:]])[1:]


_library.impl("deform_conv2d", _forward, "CompositeExplicitAutograd")
_library.impl("deform_conv2d_backward", _backward, "CompositeExplicitAutograd")


# The compiler fuses what those kernels are made of, instead of calling an opaque operator.


def _stays_whole(*args: Any) -> bool:
    """Tell whether the compiler gets the operator as one node, which runs as it does eagerly.

    That is what the caller wants, somebody registered a kernel for a device, sizes are symbols, or it takes the
    native kernel, which is faster than the compiler's loops. With symbols Inductor would take minutes to simplify
    the index formulas, and work of an unknown size could not be cut into pieces. A package that is compiled ahead
    of time has no such choice: it runs where this library isn't installed.
    """
    if current().whole_operators or has_foreign_kernel("cpu") or has_foreign_kernel("cuda"):
        return True
    if is_ahead_of_time():
        return False
    sizes = (arg.shape if isinstance(arg, Tensor) else arg if isinstance(arg, Sequence) else [arg] for arg in args)
    return any(isinstance(size, torch.SymInt) for size in chain(*sizes)) or calls_native(make_problem(*args))


def _backward_stays_whole(grad: Tensor, *args: Any) -> bool:
    return _stays_whole(*args[:-1])


trace_through("dcn_ops::deform_conv2d", partial(_forward, traced=True), _stays_whole, _library)
trace_through("dcn_ops::deform_conv2d_backward", partial(_backward, traced=True), _backward_stays_whole, _library)
tag_compile_caches()


def has_foreign_kernel(device: torch.device | str) -> bool:
    """Tell whether another library registered a kernel of the operator or its backward for a device."""
    kind = torch.device(device).type
    return has_device_kernel(_forward_op, kind) or has_device_kernel(_backward_op, kind)


# Fake kernels: the same check, and the strides that the real kernels return.


@torch.library.register_fake("dcn_ops::deform_conv2d", lib=_library)
def _forward_fake(*arguments: Any) -> Tensor:
    input, _, weight, _, _, conv = make_problem(*arguments)
    return empty_channels_last(input, (input.shape[0], weight.shape[0], *conv.output_size(input.shape[2:])))


@torch.library.register_fake("dcn_ops::deform_conv2d_backward", lib=_library)
def _backward_fake(grad: Tensor, *arguments: Any) -> Gradients:
    input, offset, weight, _, mask, conv = make_problem(*arguments[:-1])
    check_gradient(grad, input, weight, conv)
    gradients = (
        empty_channels_last(input),
        empty_channels_last(offset),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
        None if mask is None else empty_channels_last(mask),
    )
    some = (gradient if needed else None for gradient, needed in zip(gradients, arguments[-1], strict=True))
    return cast("Gradients", tuple(some))


# Autograd: saves the inputs alone, asks only for the gradients that are needed.


class _DeformConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Tensor:
        _save(ctx, arguments)
        return below_autograd(_forward_op, _forward, keyset, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, grad, ctx.needs_input_grad[1:6])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.integers = inputs[5:]
    ctx.settings = changes()


def _gradients(ctx: Any, grad: Tensor, needs: Sequence[bool] | None = None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:5] if needs is None else needs
    # Autograd may call this from a thread of its own.
    with restored(ctx.settings) if ctx.settings else nullcontext():
        gradients = _backward_op(grad, *ctx.saved_tensors, *ctx.integers, needs)
    return *gradients, *(None for _ in ctx.integers)


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
    return cast("Gradients", tuple(next(gradients) if needed else None for needed in needs))


def _reference(*arguments: Any) -> Tensor:
    return reference.forward(*make_problem(*arguments))


def _needs_graph(*tensors: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


if HAS_KEYSETS:
    _library.impl("deform_conv2d", _forward_autograd, "Autograd", with_keyset=True)
    _library.impl("deform_conv2d_backward", _backward_autograd, "Autograd", with_keyset=True)
else:
    torch.library.register_autograd("dcn_ops::deform_conv2d", _gradients, setup_context=_save, lib=_library)


# vmap


@torch.library.register_vmap("dcn_ops::deform_conv2d", lib=_library)
def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    return vmap.forward(info, in_dims, *args)


# Autocast: features and weights in the autocast dtype, sampling positions and mask in float32.


def _autocast(*arguments: Any) -> Tensor:
    tensors, integers = arguments[:5], arguments[5:]
    device = tensors[0].device.type
    narrow, wide = torch.get_autocast_dtype(device), torch.float32
    with torch.autocast(device, enabled=False):
        return _forward_op(*map(_cast, tensors, (narrow, wide, narrow, narrow, wide)), *integers)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    # As torch's own rules do, leave float64 and what is not floating alone.
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


for _key in autocast_keys():
    _library.impl("deform_conv2d", _autocast, _key)
