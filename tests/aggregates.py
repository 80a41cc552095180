"""Cases of deform_aggregate for the tests, and a formula of it that shares no code with the library."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcn_ops.aggregate.window import Window
from dcn_ops.testing import Results


@dataclass(frozen=True, kw_only=True)
class Case:
    """One aggregation."""

    batch: int = 2
    channels: int = 6
    size: tuple[int, int] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 2
    offset_scale: float = 1.0
    remove_center: bool = False

    @property
    def window(self) -> Window:
        return Window(*self.numbers.values())

    @property
    def numbers(self) -> dict[str, Any]:
        names = ("kernel", "stride", "padding", "dilation", "groups", "offset_scale", "remove_center")
        return {name: getattr(self, name) for name in names}

    @property
    def official(self) -> tuple[Any, ...]:
        """The numbers in the order of the authors' functions."""
        pairs = (*self.kernel, *self.stride, *self.padding, *self.dilation)
        return *pairs, self.groups, self.channels // self.groups, self.offset_scale, 256, self.remove_center


CASES = {
    "plain": Case(),
    "scaled": Case(offset_scale=0.5),
    "no_centre": Case(remove_center=True, offset_scale=2.0),
    "no_centre_rectangular": Case(kernel=(3, 5), padding=(1, 2), remove_center=True),
    "even": Case(kernel=(2, 4), padding=(1, 2), offset_scale=1.5),
    "even_dilated": Case(kernel=(2, 2), dilation=(3, 2), size=(9, 8)),
    "row": Case(kernel=(1, 3), padding=(0, 2), stride=(2, 1)),
    "pointwise": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 3)),
    "one_group": Case(groups=1, channels=5),
    "group_a_channel": Case(groups=3, channels=3, padding=(0, 0)),
    "strided": Case(stride=(2, 3), padding=(2, 0), size=(9, 10), dilation=(2, 1)),
    "empty_batch": Case(batch=0),
    "one_pixel": Case(size=(1, 1)),
    "all": Case(
        batch=3, kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=3, offset_scale=0.75
    ),
}


class Inputs(NamedTuple):
    """The tensors as the operator takes them."""

    input: Tensor  # [N, H, W, C]
    offset: Tensor  # [N, Ho, Wo, G*K*2]
    mask: Tensor  # [N, Ho, Wo, G*K]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        return Inputs(*map(function, self))


def make_inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu") -> Inputs:
    """Draw the tensors: multiples of 1/32 for offsets, some of them far outside; masks of both signs."""
    generator = torch.Generator().manual_seed(seed)
    window = case.window
    shape = (case.batch, *window.output_size(case.size), window.groups * window.taps)
    input = torch.randn((case.batch, *case.size, case.channels), generator=generator, dtype=torch.float64)
    offset = torch.randint(-95, 96, (*shape[:3], shape[3] * 2), generator=generator).double() / 32
    far = torch.randint(16, offset.shape, generator=generator) == 0
    offset = torch.where(far, 32 * offset.round(), offset)
    mask = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Inputs(input, offset, mask).map(lambda t: t.to(device, dtype))


def run(function: Callable[..., Tensor], inputs: Inputs, *args: Any, **numbers: Any) -> Results:
    """Return the output and the gradients of the inputs, for a cotangent that every dtype holds."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = function(*leaves, *args, **numbers)
    cotangent = (torch.arange(out.numel(), device=out.device) * 7 % 17 - 8) / 4
    gradients = torch.autograd.grad(out, leaves, cotangent.to(out.dtype).view(out.shape))
    return {"output": out.detach(), **dict(zip(Inputs._fields, gradients, strict=True))}


def formula(inputs: Inputs, case: Case) -> Tensor:
    """Compute the output by loops over single numbers: [N, Ho, Wo, C] in float64."""
    image, offset, mask = (t.double() for t in inputs)
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = case.kernel, case.stride, case.padding, case.dilation
    half_h, half_w = (dh * (kh - 1)) // 2, (dw * (kw - 1)) // 2
    taps = [(i, j) for i in range(kw) for j in range(kh)]  # columns outside
    if case.remove_center:
        taps.remove((kw // 2, kh // 2))
    n_images, channels = image.shape[0], image.shape[3]
    out = torch.zeros((*offset.shape[:3], channels), dtype=torch.float64)
    depth, count = channels // case.groups, len(taps)
    for n in range(n_images):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                for g in range(case.groups):
                    for t, (i, j) in enumerate(taps):
                        o_x, o_y = offset[n, h, w, (g * count + t) * 2 :][:2].tolist()
                        x = w * sw - pw + half_w + case.offset_scale * (i * dw - half_w + o_x)
                        y = h * sh - ph + half_h + case.offset_scale * (j * dh - half_h + o_y)
                        sample = _sample(image[n, :, :, g * depth : (g + 1) * depth], y, x)
                        out[n, h, w, g * depth : (g + 1) * depth] += mask[n, h, w, g * count + t] * sample
    return out


def _sample(image: Tensor, y: float, x: float) -> Tensor:  # [H, W, D] -> [D]
    total = torch.zeros(image.shape[2], dtype=torch.float64)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return total
