"""The Triton implementation without a GPU: what it plans for an H100, with launches that do nothing.

``benchmarks/gpu_memory.py`` and ``benchmarks/gpu_overhead.py`` use it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dcn_ops.aggregate.kernels.gpu
import dcn_ops.aggregate.kernels.triton.launch
import dcn_ops.conv.kernels.gpu
import dcn_ops.conv.kernels.triton.plan
from dcn_ops.triton import tiles
from dcn_ops.triton.launch import Plan

H100 = tiles.Device("sm_90", 132)
# Operators of torch that start no kernel.
_NO_KERNEL = (
    "empty",
    "view",
    "permute",
    "slice",
    "transpose",
    "expand",
    "select",
    "unbind",
    "squeeze",
    "detach",
    ".t.",
)


@contextmanager
def launching_nothing(record: Callable[[Plan], None] = lambda plan: None) -> Iterator[None]:
    """Within it Triton's implementations accept every device and plan for an H100; ``record`` gets each launch."""

    def start(plan: Plan, tensors: dict[str, Tensor]) -> None:
        record(plan)

    def accept(problem: Any, grad: Tensor | None = None) -> None:
        return None

    with ExitStack() as stack:
        for module in (dcn_ops.conv.kernels.gpu, dcn_ops.aggregate.kernels.gpu):
            stack.enter_context(patch.object(module, "refuses", accept))
        for module in (dcn_ops.conv.kernels.triton.plan, dcn_ops.aggregate.kernels.triton.launch):
            stack.enter_context(patch.object(module, "start", start))
        stack.enter_context(patch.object(tiles, "device_of", lambda device: H100))
        yield


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made in a block, those alive at the same time, and torch's launches.

    Attributes:
        peak: The largest number of bytes at a time.
        kernels: The launches.
    """

    def __init__(self, known: list[Tensor]) -> None:
        """Take the tensors that exist before, which don't count."""
        super().__init__()
        self.now = self.peak = self.kernels = 0
        self._known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and count."""
        result = function(*args, **(kwargs or {}))
        self.kernels += not any(name in str(function) for name in _NO_KERNEL)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known[key] = None
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size
