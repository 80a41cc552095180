"""The Triton implementation without a GPU: what it plans for an H100, with launches that do nothing.

``benchmarks/gpu_memory.py`` and ``benchmarks/gpu_overhead.py`` use it.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

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
def accepting_every_device() -> Iterator[None]:
    """Within it Triton's implementations accept every device, and plan for an H100."""

    def accept(problem: Any, grad: Tensor | None = None) -> None:
        return None

    with ExitStack() as stack:
        for module in (dcn_ops.conv.kernels.gpu, dcn_ops.aggregate.kernels.gpu):
            stack.enter_context(patch.object(module, "refuses", accept))
        stack.enter_context(patch.object(tiles, "device_of", lambda device: H100))
        yield


@contextmanager
def launching_nothing(record: Callable[[Plan], None] = lambda plan: None) -> Iterator[None]:
    """Within it Triton's implementations accept every device and plan for an H100; ``record`` gets each launch."""

    def start(plan: Plan, tensors: dict[str, Tensor]) -> None:
        record(plan)

    with ExitStack() as stack:
        stack.enter_context(accepting_every_device())
        for module in (dcn_ops.conv.kernels.triton.plan, dcn_ops.aggregate.kernels.triton.launch):
            stack.enter_context(patch.object(module, "start", start))
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


class _Utils:
    """What a driver does with a binary."""

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Return handles of a module and of a function, registers, spilled registers and the most threads."""
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        """Do nothing."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return those of an H100."""
        return {"max_shared_mem": 227 * 1024, "multiprocessor_count": H100.processors, "warpSize": 32}


class Driver:
    """Triton's driver of an H100 that isn't there: all of Triton's work on a launch is done, but not the launch.

    Attributes:
        launched: The arguments of each launch, if they are wanted.
    """

    def __init__(self, launched: list[tuple[Any, ...]] | None = None) -> None:
        """Take the list that launches are appended to."""
        self.utils, self.launched = _Utils(), launched

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return an H100's."""
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Return what is called to launch a kernel."""
        launched = self.launched
        if launched is None:
            return lambda *arguments: None
        return lambda *arguments: launched.append(arguments)


@contextmanager
def driver_of_an_h100(launched: list[tuple[Any, ...]] | None = None) -> Iterator[None]:
    """Within it Triton compiles for an H100, and its launches return at once; ``launched`` gets their arguments."""
    with patch.object(triton.runtime.driver, "_active", Driver(launched)), accepting_every_device():
        yield
