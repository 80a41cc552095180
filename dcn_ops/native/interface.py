"""The C interface of the library, as ``problem.h`` defines it."""

import ctypes
from struct import Struct

from dcn_ops.native.build import UnavailableError
from dcn_ops.torch_internals.threads import parallel_for_address

ABI_VERSION = 1
# The fields of the struct, 8 bytes each: 26 sizes, the address of torch_parallel_for, and those of tensors.
_FIELDS, _SIZES = 38, 26
_STRUCT = Struct(f"={_FIELDS}Q")
_NO_GRADIENTS = (0,) * 5


class Library:
    """A library that is loaded.

    Raises:
        UnavailableError: Where it can't be loaded, or has another interface.
    """

    def __init__(self, path: str) -> None:
        try:
            loaded = ctypes.CDLL(path)
            version, self._forward, self._backward = (
                loaded.dcn_abi_version,
                loaded.dcn_forward,
                loaded.dcn_backward,
            )
        except (OSError, AttributeError) as error:
            raise UnavailableError(f"{path} can't be loaded ({error})") from error
        version.restype = ctypes.c_int64
        if version() != ABI_VERSION:
            raise UnavailableError(f"{path} has interface {version()} instead of {ABI_VERSION}")
        for function in (self._forward, self._backward):
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int32
        self._parallel_for = parallel_for_address()

    def forward(self, *arguments: int) -> None:
        """Run the forward: 26 sizes and strides, and the addresses of input, offset, weight, bias, mask and output.

        Raises:
            MemoryError: Where a few MiB can't be had.
        """
        packed = _STRUCT.pack(*arguments[:_SIZES], self._parallel_for, *arguments[_SIZES:], *_NO_GRADIENTS)
        if self._forward(packed) != 0:
            raise MemoryError("the native kernel of a deformable convolution got no memory")

    def backward(self, *arguments: int) -> None:
        """Run the backward: as the forward, and the gradients of output, input, offset, weight and mask.

        Raises:
            MemoryError: Where a few MiB can't be had.
        """
        packed = _STRUCT.pack(*arguments[:_SIZES], self._parallel_for, *arguments[_SIZES:])
        if self._backward(packed) != 0:
            raise MemoryError("the native kernel of a deformable convolution got no memory")
