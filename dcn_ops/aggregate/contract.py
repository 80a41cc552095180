"""The contract of the operator: schemas, kernels, fake kernels, autograd, vmap and autocast.

Importing this module registers ``torch.ops.dcn_ops.deform_aggregate`` and its backward. It imports only torch.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dcn_ops.aggregate import reference, vmap
from dcn_ops.aggregate.kernels.registry import REGISTRY
from dcn_ops.aggregate.problem import Gradients, make_problem
from dcn_ops.checks import check_gradient
from dcn_ops.registration import Autograd, register_autocast, register_traces
from dcn_ops.settings import tag_compile_caches

_NAME = "deform_aggregate"
_TENSORS = "Tensor input, Tensor offset, Tensor mask"
_NUMBERS = (
    "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, "
    "float offset_scale, bool remove_center"
)

# A module global: the operators live as long as this object.
_library = torch.library.Library("dcn_ops", "FRAGMENT")
# Arguments may have any layout, and it never changes the layout of the results: Inductor need not transpose.
_TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)
_library.define(f"{_NAME}({_TENSORS}, {_NUMBERS}) -> Tensor", tags=_TAGS)
# needs: which gradients to compute, in the order input, offset, mask; the others are None.
_library.define(
    f"{_NAME}_backward(Tensor grad, {_TENSORS}, {_NUMBERS}, bool[3] needs) -> (Tensor, Tensor, Tensor)", tags=_TAGS
)


# Kernels for every device. The registry chooses the implementation.


def _forward(*arguments: Any, traced: bool = False) -> Tensor:
    problem = make_problem(*arguments)
    return REGISTRY.choose(problem, traced=traced).forward(problem)


def _backward(grad: Tensor, *arguments: Any, traced: bool = False) -> Gradients:
    problem, needs = make_problem(*arguments[:-1]), list(arguments[-1])
    check_gradient(grad, problem.input, problem.output_shape)
    return cast("Gradients", REGISTRY.backward(grad, problem, needs, traced=traced))


_library.impl(_NAME, _forward, "CompositeExplicitAutograd")
_library.impl(f"{_NAME}_backward", _backward, "CompositeExplicitAutograd")

# The compiler fuses the aten inside those kernels, instead of calling an opaque operator. It gets one node where
# the call takes the native kernel, which is faster than the compiler's loops.


def _takes_native(*arguments: Any) -> bool:
    return REGISTRY.takes_native(make_problem(*arguments))


register_traces(_NAME, partial(_forward, traced=True), partial(_backward, traced=True), _library, _takes_native)
tag_compile_caches()

# Fake kernels: the same check, and the strides that the real kernels return.


@torch.library.register_fake(f"dcn_ops::{_NAME}", lib=_library)
def _forward_fake(*arguments: Any) -> Tensor:
    problem = make_problem(*arguments)
    return problem.input.new_empty(problem.output_shape)


@torch.library.register_fake(f"dcn_ops::{_NAME}_backward", lib=_library)
def _backward_fake(grad: Tensor, *arguments: Any) -> Gradients:
    problem = make_problem(*arguments[:-1])
    check_gradient(grad, problem.input, problem.output_shape)
    tensors = zip(problem[:3], arguments[-1], strict=True)
    return cast("Gradients", tuple(t.new_empty(t.shape) if needed else None for t, needed in tensors))


# Autograd, of any order through the reference.


def _reference(*arguments: Any) -> Tensor:
    return reference.forward(*make_problem(*arguments))


Autograd(_NAME, 3, _forward, _backward, _reference).register(_library)

# vmap


@torch.library.register_vmap(f"dcn_ops::{_NAME}", lib=_library)
def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    return vmap.forward(info, in_dims, *args)


# Autocast: features in the autocast dtype, sampling positions and mask in float32.

register_autocast(_NAME, (False, True, True), _library)
