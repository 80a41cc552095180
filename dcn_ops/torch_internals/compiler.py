"""What the compiler sees of an operator.

Without these names it sees an opaque node, which still runs.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

try:
    from torch._subclasses.functional_tensor import FunctionalTensorMode
except ImportError:
    FunctionalTensorMode = None  # type: ignore[assignment, misc]


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same tensor; Inductor stores it in its own memory before any other code reads it."""
    tensor = tensor.contiguous()
    return tensor.as_strided(tensor.shape, tensor.stride())


def trace_through(op: str, kernel: Callable[..., Any], stays_whole: Callable[..., bool], library: Any) -> None:
    """Let the compiler see the aten that ``kernel`` runs in place of the operator.

    AOTAutograd traces under functionalization. There the rule runs the kernel, as ``torch.library.triton_op`` does.
    The operator stays whole in ``torch.export``, and if ``stays_whole`` returns True for its arguments.
    """

    def rule(mode: Any, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if _export_keeps_operators() or stays_whole(*args, **(kwargs or {})):
            return mode.__torch_dispatch__(func, types, args, kwargs or {})
        with mode:
            return kernel(*args, **(kwargs or {}))

    if FunctionalTensorMode is not None:
        torch.library.register_torch_dispatch(op, FunctionalTensorMode, rule, lib=library)


def _export_keeps_operators() -> bool:
    try:
        from torch.export._trace import custom_triton_ops_decomposition_disabled
    except ImportError:  # if this is unknown, keep it whole, which still runs
        return True
    return custom_triton_ops_decomposition_disabled()


def is_ahead_of_time() -> bool:
    """Tell whether Inductor compiles a package, which must run without this library."""
    virtualized = sys.modules.get("torch._inductor.virtualized")
    return bool(getattr(getattr(virtualized, "V", None), "aot_compilation", False))
