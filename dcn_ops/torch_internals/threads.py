"""The threads of torch.

Without this name, native code runs in one thread.
"""

import ctypes
from pathlib import Path

import torch


def parallel_for_address() -> int:
    """Return the address of ``torch_parallel_for``, from torch's stable C interface; 0 if there is none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            function = ctypes.CDLL(str(folder / name)).torch_parallel_for
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
