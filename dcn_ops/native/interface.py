"""The C interface of the library, as ``problem.h`` defines it."""

import ctypes
from collections.abc import Sequence
from struct import Struct
from typing import Any

from dcn_ops.native.build import UnavailableError
from dcn_ops.torch_internals.threads import parallel_for_address

ABI_VERSION = 2
# The structs, 8 bytes per field. First what both have: 17 sizes, the address of torch_parallel_for, 8 addresses of
# tensors. Then, of a convolution, 10 sizes and strides and 3 addresses; of an aggregation, the scale of offsets.
_CONVOLUTION, _AGGREGATION = Struct("=39Q"), Struct("=26Qd")


class Library:
    """A library that is loaded.

    ``sizes`` are those of a call that both operators have, and ``addresses`` those of input, offset, mask, output
    and the gradients of output, input, offset and mask. An address of 0 stands for no tensor.

    Raises:
        UnavailableError: If it can't be loaded, or has another interface.
    """

    def __init__(self, path: str) -> None:
        try:
            loaded = ctypes.CDLL(path)
            version = loaded.dcn_abi_version
            version.restype = ctypes.c_int64
            if version() != ABI_VERSION:
                raise UnavailableError(f"{path} has interface {version()} instead of {ABI_VERSION}")
            self._convolve = _typed(loaded.dcn_convolve)
            self._convolve_backward = _typed(loaded.dcn_convolve_backward)
            self._aggregate = _typed(loaded.dcn_aggregate)
            self._aggregate_backward = _typed(loaded.dcn_aggregate_backward)
        except (OSError, AttributeError) as error:
            raise UnavailableError(f"{path} can't be loaded ({error})") from error
        self._parallel_for = parallel_for_address()

    def convolve(self, sizes: Sequence[int], addresses: Sequence[int], own: Sequence[int]) -> None:
        """Run the forward of a convolution.

        ``own``: its filters, groups, strides of offset and mask; addresses of weight, bias, the weight's gradient.

        Raises:
            MemoryError: If a few MiB are not available.
        """
        _check(self._convolve(_CONVOLUTION.pack(*sizes, self._parallel_for, *addresses, *own)))

    def convolve_backward(self, sizes: Sequence[int], addresses: Sequence[int], own: Sequence[int]) -> None:
        """Run the backward of a convolution, with the same arguments."""
        _check(self._convolve_backward(_CONVOLUTION.pack(*sizes, self._parallel_for, *addresses, *own)))

    def aggregate(self, sizes: Sequence[int], addresses: Sequence[int], offset_scale: float) -> None:
        """Run the forward of an aggregation.

        Raises:
            MemoryError: If a few MiB are not available.
        """
        _check(self._aggregate(_AGGREGATION.pack(*sizes, self._parallel_for, *addresses, offset_scale)))

    def aggregate_backward(self, sizes: Sequence[int], addresses: Sequence[int], offset_scale: float) -> None:
        """Run the backward of an aggregation, with the same arguments."""
        _check(self._aggregate_backward(_AGGREGATION.pack(*sizes, self._parallel_for, *addresses, offset_scale)))


def _typed(function: Any) -> Any:
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int32
    return function


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("a native kernel of dcn_ops got no memory; it needs a few MiB")
