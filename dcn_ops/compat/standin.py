"""What the stand-ins share: weight, bias and the numbers of a deformable convolution.

Like the layers that they stand for they are no ``nn.Conv2d``: code that initialises or converts convolutions leaves
them alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

import dcn_ops.conv.contract  # noqa: F401  (registers the operator)
from dcn_ops.arguments import as_integer, as_pair

Pair = int | tuple[int, int]


def convolve(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
) -> Tensor:
    """Convolve input [N, C, H, W]; the shapes are those of ``dcn_ops.deform_conv2d``, the result is contiguous."""
    numbers = [as_pair(*named) for named in (("stride", stride), ("padding", padding), ("dilation", dilation))]
    arguments = (input, offset, weight, bias, mask, *numbers, groups, offset_groups)
    return torch.ops.dcn_ops.deform_conv2d(*arguments).contiguous()


class StandIn(nn.Module):
    """Weight [O, C / groups, kh, kw], bias [O] or None, and the attributes that callers read."""

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"expected groups to divide the channels, got {in_channels=}, {out_channels=}, {groups=}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.stride = _pair("stride", stride)
        self.padding = _pair("padding", padding)
        self.dilation = _pair("dilation", dilation)
        self.groups = as_integer("groups", groups)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def _convolve(self, input: Tensor, offset: Tensor, mask: Tensor | None, offset_groups: int) -> Tensor:
        numbers = (self.stride, self.padding, self.dilation, self.groups, offset_groups)
        return convolve(input, offset, mask, self.weight, self.bias, *numbers)

    def extra_repr(self) -> str:
        """Return the arguments of the convolution."""
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        shown = {name: getattr(self, name) for name in names}
        return ", ".join(f"{name}={value}" for name, value in {**shown, "bias": self.bias is not None}.items())


def refuse_bias(cls: type, bias: Any) -> None:
    """Raise a ValueError for a bias, which layers without mask don't have."""
    if bias:
        raise ValueError(f"expected bias=False, got {bias=}; {cls.__name__} has none, in the original neither")


def _pair(name: str, value: Pair) -> tuple[int, int]:
    height, width = as_pair(name, value)
    return height, width
