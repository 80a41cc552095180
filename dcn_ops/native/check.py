"""The check of a library that is just loaded: tiny calls, whose results are known.

Without torch's tensors, which a compiler may be tracing when the library is loaded.
"""

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple

from dcn_ops.native.build import UnavailableError
from dcn_ops.native.interface import Library

SIZE, KERNEL, PADDING = (3, 4), (2, 3), (1, 1)
TAPS, OUT = KERNEL[0] * KERNEL[1], (SIZE[0] + 1, SIZE[1])


class Case(NamedTuple):
    """A convolution of one image, with more channels than fill whole vectors, and its checksums."""

    channels: int
    filters: int
    groups: int
    offset_groups: int
    expected: tuple[float, ...]  # of output and gradients of input, offset, weight and mask

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each tensor has, in the order in which the library takes them."""
        pixels, out = SIZE[0] * SIZE[1], OUT[0] * OUT[1]
        offset, weight = self.offset_groups * TAPS * 2 * out, self.filters * self.channels // self.groups * TAPS
        tensors = {"input": self.channels * pixels, "offset": offset, "weight": weight, "bias": self.filters}
        output = self.filters * out
        return tensors | {"mask": offset // 2, "output": output, "grad": output}


CASES = (
    Case(21, 19, 1, 1, (-3438.75, 1158.03125, 860.5, -2581.6875, -6181.9375)),
    Case(18, 24, 3, 2, (-879.9375, -1768.875, 14823.0, -2935.09375, -4375.375)),
    Case(38, 38, 38, 2, (-3189.5, 625.6875, -11103.875, -145.84375, -4912.8125)),
)


class Aggregation(NamedTuple):
    """An aggregation of one image, without the tap in the centre, and its checksums."""

    channels: int
    groups: int
    offset_scale: float
    expected: tuple[float, ...]  # of output and gradients of input, offset and mask

    @property
    def sizes(self) -> dict[str, int]:
        """How many values each tensor has, in the order in which the library takes them."""
        pixels, masks = SIZE[0] * SIZE[1], SIZE[0] * SIZE[1] * self.groups * AGGREGATED_TAPS
        maps = {"offset": 2 * masks, "mask": masks}
        return {
            "input": self.channels * pixels,
            **maps,
            **dict.fromkeys(("output", "grad"), self.channels * pixels),
        }


AGGREGATED_TAPS = 8  # of 3 x 3
AGGREGATIONS = (
    Aggregation(32, 2, 0.5, (-803.5234375, 14.3359375, -2144.78125, 45614.1875)),
    Aggregation(63, 3, 1.0, (-2125.5625, -1715.0625, 14235.625, 20694.0625)),
)


def check(library: Library) -> None:
    """Compare what the library computes.

    Raises:
        UnavailableError: Where it is something else.
    """
    for case in (*CASES, *AGGREGATIONS):
        actual = checksums(library, case) if isinstance(case, Case) else aggregated(library, case)
        if actual != case.expected:
            raise UnavailableError(f"the library computes {actual} instead of {case.expected}; report this")


def checksums(library: Library, case: Case) -> tuple[float, ...]:
    """Return a checksum of a convolution's output and of each gradient."""
    tensors, at = _tensors(case.sizes)
    gradients, to = _gradients(case.sizes, ("input", "offset", "mask", "weight"))
    out = OUT[0] * OUT[1]
    sizes = (1, case.channels, *SIZE, *OUT, *KERNEL, 1, 1, *PADDING, 1, 1, case.offset_groups, 0, 1)
    addresses = at["input"], at["offset"], at["mask"], at["output"], at["grad"], *to[:3]
    strides = (0, out, OUT[1], 1)
    own = case.filters, case.groups, *strides, *strides, at["weight"], at["bias"], to[3]
    library.convolve(sizes, addresses, own)
    library.convolve_backward(sizes, addresses, own)
    return tuple(map(checksum, (tensors["output"], gradients[0], gradients[1], gradients[3], gradients[2])))


def aggregated(library: Library, case: Aggregation) -> tuple[float, ...]:
    """Return a checksum of an aggregation's output and of each gradient."""
    tensors, at = _tensors(case.sizes)
    gradients, to = _gradients(case.sizes, ("input", "offset", "mask"))
    sizes = (1, case.channels, *SIZE, *SIZE, 3, 3, 1, 1, 1, 1, 1, 1, case.groups, 1, 1)
    library.aggregate(sizes, (*at.values(), *to), case.offset_scale)
    library.aggregate_backward(sizes, (*at.values(), *to), case.offset_scale)
    return tuple(map(checksum, (tensors["output"], *gradients)))


def checksum(values: Iterable[float]) -> float:
    """Return a weighted sum."""
    return float(sum((i % 31 + 1) * value for i, value in enumerate(values)))


def _tensors(sizes: dict[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return tensors of known values, and their addresses."""
    tensors = {name: (ctypes.c_float * size)(*values(name, size)) for name, size in sizes.items()}
    return tensors, {name: ctypes.addressof(tensor) for name, tensor in tensors.items()}


def _gradients(sizes: dict[str, int], names: tuple[str, ...]) -> tuple[list[Any], list[int]]:
    """Return room for gradients, and its addresses."""
    tensors = [(ctypes.c_float * sizes[name])() for name in names]
    return tensors, [ctypes.addressof(tensor) for tensor in tensors]


def values(name: str, size: int) -> list[float]:
    """Return numbers of so few bits that no order of sums rounds: all results are exact."""
    step, last = {"offset": (4, 16), "mask": (2, 2)}.get(name, (1, 4))
    return [(i * 37 % 101 % (2 * last + 1) - last) / step for i in range(size)]
