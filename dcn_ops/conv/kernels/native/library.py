"""The library of the native kernel: found or built with the first call that could take it, checked, loaded once."""

import ctypes
import logging
import os
from collections.abc import Callable
from struct import Struct
from threading import Lock
from typing import NamedTuple

import torch

from dcn_ops.conv.kernels.native.build import UnavailableError, build, find_compiler, is_whole, library_path
from dcn_ops.torch_internals.threads import parallel_for_address

_log = logging.getLogger(__name__)

ABI_VERSION = 1
# The arguments of a call, in the order of the struct in problem.h.
ARGUMENTS = Struct("=38Q")


class Library(NamedTuple):
    """What the shared library exports; both take the packed arguments and return 0, or 1 where memory ran out."""

    forward: Callable[[bytes], int]
    backward: Callable[[bytes], int]
    parallel_for: int  # the address of torch's, 0 where there is none


_lock = Lock()
_found: Library | str | None = None


def library() -> Library | str:
    """Return the library, or why there is none; the first call may build it, which takes seconds."""
    if _found is None:
        with _lock:  # others wait for who builds
            if _found is None:
                _find()
    assert _found is not None
    return _found


def _find() -> None:
    global _found
    if os.environ.get("DCN_OPS_NATIVE") == "0":
        _found = "it is switched off by the variable DCN_OPS_NATIVE"
        return
    try:
        _found = _load_or_build()
    except UnavailableError as error:
        _found = str(error)
        _log.warning(
            "no native kernel, so that deformable convolutions on the CPU take up to ten times as long: %s. "
            "DCN_OPS_NATIVE=0 switches it off, and this message",
            _found,
        )


def _load_or_build() -> Library:
    compiler = find_compiler()
    path = library_path(compiler)
    if is_whole(path):
        try:
            return _load(str(path))
        except UnavailableError as error:
            _log.info("%s is built again: %s", path, error)
    build(compiler, path)
    return _load(str(path))


def _load(path: str) -> Library:
    """Load the library and compare what it computes.

    Raises:
        UnavailableError: Where it can't be loaded, is another version or computes something else.
    """
    try:
        loaded = ctypes.CDLL(path)
        version, forward, backward = loaded.dcn_abi_version, loaded.dcn_forward, loaded.dcn_backward
    except (OSError, AttributeError) as error:
        raise UnavailableError(f"{path} can't be loaded ({error})") from error
    version.restype = ctypes.c_int64
    if version() != ABI_VERSION:
        raise UnavailableError(f"{path} has version {version()}, not {ABI_VERSION}")
    for function in (forward, backward):
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int32
    return Library(forward, backward, parallel_for_address())
