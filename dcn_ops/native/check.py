"""The check of a library that is just loaded: tiny convolutions, whose results are known.

Without torch's tensors, which a compiler may be tracing when the library is loaded.
"""

import ctypes
from typing import NamedTuple

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


def check(library: Library) -> None:
    """Compare what the library computes.

    Raises:
        UnavailableError: Where it is something else.
    """
    for case in CASES:
        actual = checksums(library, case)
        if actual != case.expected:
            raise UnavailableError(f"the library computes {actual} instead of {case.expected}; report this")


def checksums(library: Library, case: Case) -> tuple[float, ...]:
    """Return a checksum of the output and of each gradient."""
    inputs = {name: (ctypes.c_float * size)(*values(name, size)) for name, size in case.sizes.items()}
    results = [inputs["output"]]
    gradients = [(ctypes.c_float * case.sizes[name])() for name in ("input", "offset", "weight", "mask")]
    out = OUT[0] * OUT[1]
    shapes = (1, case.channels, *SIZE, case.filters, *OUT, *KERNEL)
    strides_of_maps, threads = (0, out, OUT[1], 1), 1
    conv = (1, 1, *PADDING, 1, 1, case.groups, case.offset_groups)
    numbers = (*shapes, *conv, *strides_of_maps, *strides_of_maps, threads)
    library.forward(*numbers, *(ctypes.addressof(inputs[name]) for name in list(inputs)[:6]))
    library.backward(*numbers, *map(ctypes.addressof, (*inputs.values(), *gradients)))
    return tuple(sum((i % 31 + 1) * value for i, value in enumerate(result)) for result in (*results, *gradients))


def values(name: str, size: int) -> list[float]:
    """Return numbers of so few bits that no order of sums rounds: all results are exact."""
    step, last = {"offset": (4, 16), "mask": (2, 2)}.get(name, (1, 4))
    return [(i * 37 % 101 % (2 * last + 1) - last) / step for i in range(size)]
