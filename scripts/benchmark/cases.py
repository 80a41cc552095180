"""The table of cases: convolutions of networks in which deformable ones are common."""

import fnmatch
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcn_ops.sampling.geometry import Conv


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution with stride 1 that keeps height and width."""

    batch: int
    channels: int
    filters: int
    height: int
    width: int
    kernel: int = 3
    groups: int = 1
    offset_groups: int = 1
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """The case in one word, such as ``4x256x28x28`` or ``8x96x56x56-k7-dw-bfloat16``."""
        parts = [f"{self.batch}x{self.channels}x{self.height}x{self.width}"]
        parts += [f"o{self.filters}"] if self.filters != self.channels else []
        parts += [f"k{self.kernel}"] if self.kernel != 3 else []
        parts += ["dw" if self.groups == self.channels else f"g{self.groups}"] if self.groups > 1 else []
        parts += [f"og{self.offset_groups}"] if self.offset_groups > 1 else []
        parts += [self.dtype] if self.dtype != "float32" else []
        return "-".join(parts)

    @property
    def samples(self) -> int:
        """How many values are sampled: each channel at each tap of each output pixel."""
        return self.batch * self.channels * self.height * self.width * self.kernel**2

    @property
    def conv(self) -> Conv:
        """The integers of the operator."""
        pad = self.kernel // 2
        return Conv((self.kernel, self.kernel), (1, 1), (pad, pad), (1, 1), self.groups, self.offset_groups)

    def inputs(self, sigma: float, device: str) -> dict[str, Tensor]:
        """Draw input, offset, weight and mask in the layouts of channels_last networks; ``sigma`` is in pixels."""
        torch.manual_seed(0)
        taps, dtype = self.offset_groups * self.kernel**2, getattr(torch, self.dtype)
        depth = self.channels // self.groups
        offset = torch.randn(self.batch, 2 * taps, self.height, self.width)
        tensors = {
            "input": torch.randn(self.batch, self.channels, self.height, self.width),
            # Odd multiples of 1/32 are exact in every dtype. None is an integer, where the gradient jumps.
            "offset": offset.mul(16 * sigma).clamp(-112, 111).floor().mul(2).add(1).div(32),
            "weight": torch.randn(self.filters, depth, self.kernel, self.kernel) / (depth * self.kernel**2) ** 0.5,
            "mask": torch.rand(self.batch, taps, self.height, self.width),
        }
        return {name: t.to(device, dtype, memory_format=torch.channels_last) for name, t in tensors.items()}


def _square(batch: int, channels: int, size: int, groups: int = 1, kernel: int = 3, offset_groups: int = 1) -> Case:
    return Case(
        batch=batch,
        channels=channels,
        filters=channels,
        height=size,
        width=size,
        kernel=kernel,
        groups=groups,
        offset_groups=offset_groups,
    )


_RESNET = [(64, 56), (128, 28), (256, 14), (512, 7)]
_DENSE = [
    *(_square(batch, channels, size) for batch in (1, 8, 32) for channels, size in _RESNET),
    *(
        Case(batch=1, channels=c, filters=c, height=h, width=w)
        for c, h, w in ((128, 100, 168), (256, 50, 84), (512, 25, 42))
    ),
    _square(2, 128, 56),
    _square(4, 256, 28),
]
_GROUPED = [
    _square(8, 256, 28, groups=32),
    _square(8, 512, 14, groups=32),
    *(
        _square(8, c, s, groups=c, kernel=k)
        for c, s, k in ((96, 56, 3), (512, 14, 3), (240, 28, 5), (96, 56, 7), (384, 14, 7))
    ),
    *(_square(4, 256, 28, offset_groups=og) for og in (4, 8)),
]
_HALF = [replace(case, dtype="bfloat16") for case in (_square(4, 256, 28), _square(8, 96, 56, groups=96))]
_SIZES = [_square(batch, 256, size) for batch, size in ((1, 14), (1, 28), (1, 56), (4, 56), (16, 56))]

# For a GPU: the sizes of detectors (800x1344) and of a large batch, in the dtypes that other libraries support.
_GPU_FLOAT32 = [
    *(
        Case(batch=batch, channels=c, filters=c, height=h, width=w)
        for c, h, w in ((128, 100, 168), (256, 50, 84), (512, 25, 42))
        for batch in (1, 8)
    ),
    _square(32, 256, 56),
    _square(32, 512, 28),
    _square(8, 96, 56, groups=96, kernel=7),
    _square(8, 256, 28, groups=32),
]
_GPU = [replace(case, dtype=dtype) for case in _GPU_FLOAT32 for dtype in ("bfloat16", "float16", "float32")]

SUITES = {
    "gpu": _GPU,
    "op": _DENSE + _GROUPED + _HALF,
    "dense": _DENSE,
    "grouped": _GROUPED,
    "half": [*_HALF, *(replace(case, dtype="float32") for case in _HALF)],
    "size": _SIZES,
    "threads": [_square(4, 256, 28), _square(8, 96, 56, groups=96)],
    "overhead": [_square(1, 8, 4)],
    "quick": [_square(4, 256, 28), _square(8, 512, 14, groups=512)],
}
MODELS = ("resnet50", "resnet18", "convnext_tiny", "efficientnet_b0", "mobilenetv3_large_100")


def choose(suite: str, pattern: str) -> list[Case]:
    """Return the cases of a suite whose names match a shell pattern.

    Raises:
        ValueError: If the suite is unknown, or the pattern matches nothing.
    """
    if suite not in SUITES:
        raise ValueError(f"expected suite to be one of {', '.join((*SUITES, 'models', 'deploy'))}, got {suite=}")
    chosen = [case for case in SUITES[suite] if fnmatch.fnmatch(case.name, pattern)]
    if not chosen:
        raise ValueError(f"no case of {suite=} matches {pattern!r}; there are {[c.name for c in SUITES[suite]]}")
    return chosen
