"""The contract of the operator: schemas, kernels, fake kernels, autograd, vmap and autocast.

Importing this module registers ``torch.ops.dcn_ops.deform_conv2d`` and its backward. It imports only torch.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dcn_ops.checks import check_gradient
from dcn_ops.conv import reference, vmap
from dcn_ops.conv.kernels.registry import REGISTRY
from dcn_ops.conv.problem import Gradients, make_problem
from dcn_ops.registration import Autograd, register_autocast, register_traces
from dcn_ops.sampling.geometry import empty_channels_last
from dcn_ops.settings import tag_compile_caches

NAME = "deform_conv2d"
_INTEGERS = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, SymInt offset_groups"
_TENSORS = "Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask"

# A module global: the operators live as long as this object.
_library = torch.library.Library("dcn_ops", "DEF")
# Every layout of the arguments will do, and none changes that of the results: Inductor need not transpose.
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
_library.define(f"{NAME}({_TENSORS}, {_INTEGERS}) -> Tensor", tags=_TAGS)
# needs: which gradients to compute, in the order input, offset, weight, bias, mask; the others are None.
_library.define(
    f"{NAME}_backward(Tensor grad, {_TENSORS}, {_INTEGERS}, bool[5] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

# Kernels for every device. The registry chooses the implementation.


def _forward(*arguments: Any, traced: bool = False) -> Tensor:
    problem = make_problem(*arguments)
    return REGISTRY.choose(problem, traced=traced).forward(problem)


def _backward(grad: Tensor, *arguments: Any, traced: bool = False) -> Gradients:
    problem, needs = make_problem(*arguments[:-1]), list(arguments[-1])
    check_gradient(grad, problem.input, problem.output_shape)
    return cast("Gradients", REGISTRY.backward(grad, problem, needs, traced=traced))


_library.impl(NAME, _forward, "CompositeExplicitAutograd")
_library.impl(f"{NAME}_backward", _backward, "CompositeExplicitAutograd")


# The compiler sees the aten of these kernels and fuses it. But if the native kernel is available, it gets one
# opaque node, because the native kernel is faster than the compiler's loops.


def _takes_native(*arguments: Any) -> bool:
    return REGISTRY.takes_native(make_problem(*arguments))


register_traces(NAME, partial(_forward, traced=True), partial(_backward, traced=True), _library, _takes_native)
tag_compile_caches()

# Fake kernels: the same check, and the strides that the real kernels return.


@torch.library.register_fake(f"dcn_ops::{NAME}", lib=_library)
def _forward_fake(*arguments: Any) -> Tensor:
    problem = make_problem(*arguments)
    return empty_channels_last(problem.input, problem.output_shape)


@torch.library.register_fake(f"dcn_ops::{NAME}_backward", lib=_library)
def _backward_fake(grad: Tensor, *arguments: Any) -> Gradients:
    problem = make_problem(*arguments[:-1])
    check_gradient(grad, problem.input, problem.output_shape)
    input, offset, weight, _, mask, _ = problem
    gradients = (
        empty_channels_last(input),
        empty_channels_last(offset),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0]),
        None if mask is None else empty_channels_last(mask),
    )
    some = (gradient if needed else None for gradient, needed in zip(gradients, arguments[-1], strict=True))
    return cast("Gradients", tuple(some))


# Autograd, of any order by the reference.


def _reference(*arguments: Any) -> Tensor:
    return reference.forward(*make_problem(*arguments))


Autograd(NAME, 5, _forward, _backward, _reference).register(_library)

# vmap


@torch.library.register_vmap(f"dcn_ops::{NAME}", lib=_library)
def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    return vmap.forward(info, in_dims, *args)


# Autocast: features and weights in the autocast dtype, sampling positions and mask in float32.

register_autocast(NAME, (False, True, False, False, True), _library)
