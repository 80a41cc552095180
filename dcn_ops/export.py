"""What exporters and other compilers may want: the operator whole, or in pieces that every runtime has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import dcn_ops.library  # noqa: F401  (registers the operator)
from dcn_ops import portable
from dcn_ops.check import check_arguments
from dcn_ops.settings import settings


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Return a decomposition table of the operator into core ATen: ``grid_sampler_2d`` and a 1x1 convolution.

    ``exported.run_decompositions(dcn_ops.decompositions())`` turns a ``torch.export`` program, which holds the
    operator whole, into one that runs where this library is not installed. Positions lose some 1e-7 of the image's
    size by the scaling that ``grid_sampler_2d`` asks for. For inference: exported programs have no backward.
    """
    return {torch.ops.dcn_ops.deform_conv2d.default: decompose}


def decompose(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, *integers: Any
) -> Tensor:
    """Compute the operator, its arguments in its own order, by core ATen."""
    conv = check_arguments(input, offset, weight, bias, mask, *integers)
    return portable.forward(input, offset, weight, bias, mask, conv)


@contextmanager
def whole_operators() -> Iterator[None]:
    """Keep the operator a node of its own in what ``torch.compile`` hands to its backend.

    By default the compiler sees the aten inside, which Inductor fuses. A backend that has a deformable convolution
    of its own (OpenVINO's, TensorRT's) wants the node: call the compiled model for the first time, which is when it
    is compiled, within ``with dcn_ops.whole_operators():``. ``torch.export`` needs nothing, it keeps the operator.
    """
    with settings(whole_operators=True):
        yield
