"""Operators for exporters and other compilers: whole, or in pieces that every runtime has."""

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

    A ``torch.export`` program holds the operators whole. ``exported.run_decompositions(dcn_ops.decompositions())``
    turns it into a program that runs where this library is not installed. It is for inference: exported programs
    have no backward.

    Args:
        sampling: "grid_sample" samples with ``grid_sampler_2d``. It needs scaled positions, and the scaling loses
            some 1e-7 of the image's size. "gather" adds four gathered pixels. It is slower than a good
            ``grid_sampler_2d``. Use it for runtimes that have none or compute it wrongly, as TensorRT partly does.
        finite: Leave out the comparison that makes NaN offsets sample 0, for runtimes without comparisons, such as
            ncnn.

    Raises:
        ValueError: For another ``sampling``.
    """
    if sampling not in portable.SAMPLING:
        raise ValueError(f"expected sampling to be one of {', '.join(portable.SAMPLING)}, got {sampling=}")
    return {
        torch.ops.dcn_ops.deform_conv2d.default: partial(decompose, sampling=sampling, finite=finite),
        torch.ops.dcn_ops.deform_aggregate.default: partial(decompose_aggregate, sampling=sampling, finite=finite),
        torch.ops.aten.alias.default: _same,  # a slice over everything becomes alias, which pnnx lacks
    }


def _same(tensor: Tensor) -> Tensor:
    return tensor


def decompose(*arguments: Any, sampling: str = "grid_sample", finite: bool = False) -> Tensor:
    """Compute deform_conv2d in core ATen, with the arguments in the operator's order."""
    return portable.forward(make_problem(*arguments), sampling, finite)


def decompose_aggregate(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *numbers: Any,
    sampling: str = "grid_sample",
    finite: bool = False,
) -> Tensor:
    """Compute deform_aggregate in core ATen, with the arguments in the operator's order."""
    window = check_aggregate(input, offset, mask, *numbers)
    return aggregate.forward(input, offset, mask, window, sampling, finite)


@contextmanager
def whole_operators() -> Iterator[None]:
    """Keep the operator as one node in the graph that ``torch.compile`` passes to its backend.

    By default the compiler sees the aten inside, which Inductor fuses. A backend that has its own deformable
    convolution (OpenVINO, TensorRT) needs the node. Make the first call of the model, which compiles it, within
    ``with dcn_ops.whole_operators():``. ``torch.export`` doesn't need this: it always keeps the operator.
    """
    with settings(whole_operators=True):
        yield
