"""What exporters and other compilers may want: the operator whole, or in pieces that every runtime has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dcn_ops.aggregate.contract
import dcn_ops.conv.contract  # noqa: F401  (they register the operators)
from dcn_ops.aggregate.check import check_arguments as check_aggregate
from dcn_ops.conv.problem import make_problem
from dcn_ops.interop import aggregate, portable
from dcn_ops.settings import settings


def decompositions(sampling: str = "grid_sample", *, finite: bool = False) -> dict[Any, Callable[..., Tensor]]:
    """Return a decomposition table of the operators into core ATen: bilinear samples, and their convolution or sum.

    ``exported.run_decompositions(dcn_ops.decompositions())`` turns a ``torch.export`` program, which holds the
    operators whole, into one that runs where this library is not installed. For inference: exported programs have
    no backward.

    Args:
        sampling: "grid_sample" samples by ``grid_sampler_2d``; positions lose some 1e-7 of the image's size by the
            scaling that it asks for. "gather" adds four gathered pixels: slower where there is a good
            ``grid_sampler_2d``, for runtimes that have none or compute it wrongly, as TensorRT does in places.
        finite: Leave out the comparison by which offsets that are NaN sample 0, for runtimes without comparisons,
            such as ncnn.

    Raises:
        ValueError: For another ``sampling``.
    """
    if sampling not in portable.SAMPLING:
        raise ValueError(f"expected sampling to be one of {', '.join(portable.SAMPLING)}, got {sampling=}")
    return {
        torch.ops.dcn_ops.deform_conv2d.default: partial(decompose, sampling=sampling, finite=finite),
        torch.ops.dcn_ops.deform_aggregate.default: partial(decompose_aggregate, sampling=sampling, finite=finite),
        torch.ops.aten.alias.default: _same,  # what a slice over everything becomes, which pnnx lacks
    }


def _same(tensor: Tensor) -> Tensor:
    return tensor


def decompose(*arguments: Any, sampling: str = "grid_sample", finite: bool = False) -> Tensor:
    """Compute the operator, its arguments in its own order, by core ATen."""
    return portable.forward(make_problem(*arguments), sampling, finite)


def decompose_aggregate(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *numbers: Any,
    sampling: str = "grid_sample",
    finite: bool = False,
) -> Tensor:
    """Compute deform_aggregate, its arguments in its own order, by core ATen."""
    window = check_aggregate(input, offset, mask, *numbers)
    return aggregate.forward(input, offset, mask, window, sampling, finite)


@contextmanager
def whole_operators() -> Iterator[None]:
    """Keep the operator a node of its own in what ``torch.compile`` hands to its backend.

    By default the compiler sees the aten inside, which Inductor fuses. A backend that has a deformable convolution
    of its own (OpenVINO's, TensorRT's) wants the node: call the compiled model for the first time, which is when it
    is compiled, within ``with dcn_ops.whole_operators():``. ``torch.export`` needs nothing, it keeps the operator.
    """
    with settings(whole_operators=True):
        yield
