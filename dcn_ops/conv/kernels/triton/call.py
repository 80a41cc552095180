"""The tensors of a call, as kernels read them, and the gradients that a backward writes.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, G offset groups, K taps; n images of
the current call.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton.pieces import Sizes, room
from dcn_ops.conv.kernels.triton.plan import Workload, workload_of
from dcn_ops.conv.problem import Problem
from dcn_ops.sampling.geometry import Conv
from dcn_ops.settings import Settings, workspace_limit
from dcn_ops.triton.launch import is_traced


class Call(NamedTuple):
    """The tensors that kernels read, for all images or some."""

    image: Tensor  # [n, H, W, C]
    offset: Tensor  # [n, G*K*2, Ho, Wo]
    mask: Tensor | None  # [n, G*K, Ho, Wo]
    weight: Tensor  # [O, C / groups, kh, kw]
    conv: Conv

    def of(self, images: slice) -> "Call":
        """Return the call for some of the images."""
        if images == slice(0, self.image.shape[0]):
            return self
        mask = None if self.mask is None else self.mask[images]
        return self._replace(image=self.image[images], offset=self.offset[images], mask=mask)

    def workload(self) -> Workload:
        """Return the numbers of the call."""
        return workload_of(self.image, self.offset, self.weight, self.mask, self.conv)

    def maps(self) -> dict[str, Tensor]:
        """Return offset and mask by the names of their pointers."""
        return {"offset_ptr": self.offset, "mask_ptr": self.offset if self.mask is None else self.mask}

    def tensors(self) -> dict[str, Tensor]:
        """Return image, offset and mask by the names of their pointers."""
        return {"input_ptr": self.image} | self.maps()

    def sizes(self) -> Sizes:
        """Return the numbers that the memory of the call depends on."""
        (n, height, width, channels), conv = self.image.shape, self.conv
        return Sizes(
            images=n,
            channels=channels,
            filters=self.weight.shape[0],
            groups=conv.groups,
            taps=conv.taps,
            offset_groups=conv.offset_groups,
            pixels=(height, width),
            positions=self.offset.shape[2] * self.offset.shape[3],
            maps=2 if self.mask is None else 3,
            itemsize=self.image.dtype.itemsize,
            map_itemsize=self.offset.dtype.itemsize,
            copies_weight=not self.weight.is_contiguous(memory_format=torch.channels_last),
        )

    def limit(self) -> int:
        """Return the bytes that a backward may take: ``pieces.room``, and within the limit that the caller has set.

        In a compiler's graph each piece costs time of compilation, so the limit alone counts there. It also does if
        the caller has set a higher one than the default.
        """
        limit = workspace_limit()
        if limit > Settings.workspace_limit or is_traced(self.image):
            return limit
        return min(limit, room(self.sizes()))


class Wanted(NamedTuple):
    """The gradients that a backward writes; None for each that is not needed."""

    input: Tensor | None  # [n, H, W, C]
    offset: Tensor | None  # [n, Ho, Wo, G*K*2]
    mask: Tensor | None  # [n, Ho, Wo, G*K]

    def of(self, images: slice) -> "Wanted":
        """Return the gradients of some of the images."""
        return Wanted(*(None if t is None else t[images] for t in self))

    @property
    def any_map(self) -> bool:
        """Tell whether the gradient of offset or mask is needed."""
        return self.offset is not None or self.mask is not None


def call_of(problem: Problem) -> Call:
    """Return the tensors of a call."""
    return Call(channels_last(problem.input), problem.offset, problem.mask, problem.weight, problem.conv)


def channels_last(tensor: Tensor) -> Tensor:
    """Return [N, H, W, C] of [N, C, H, W]: a copy, unless it has this layout."""
    return tensor.permute(0, 2, 3, 1).contiguous()


def map_gradients(call: Call, wanted: Wanted) -> dict[str, Tensor]:
    """Return the memory for the gradients of offset and mask, by the names of their pointers."""
    of_maps = (call.offset if t is None else t for t in (wanted.offset, wanted.mask))
    return dict(zip(("grad_offset_ptr", "grad_mask_ptr"), of_maps, strict=True))
