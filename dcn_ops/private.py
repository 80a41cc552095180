"""The private Python names of torch, so that a new torch breaks this file alone.

Tried on torch 2.11 and 2.15.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

try:
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
except ImportError:  # without it the compiler sees an opaque operator, which still runs
    FunctionalTensor = FunctionalTensorMode = None  # type: ignore[assignment, misc]


def _plain_bits(device: str) -> int:
    keys = (getattr(torch._C.DispatchKey, name) for name in (device, f"Autograd{device}"))
    first, second = (torch._C.DispatchKeySet(key) for key in keys)
    return (first | second).raw_repr()


_PLAIN_BITS = (_plain_bits("CPU"), _plain_bits("CUDA"))


def below_autograd(op: Any, kernel: Callable[..., Any], keyset: Any, *args: Any) -> Any:
    """Call what follows the Autograd key of ``op``, whose kernel of every device is ``kernel``."""
    # ADInplaceOrView too: a kernel's last permute is no view that autograd tracks, and the output may be written to.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        if keyset.raw_repr() in _PLAIN_BITS:
            # No mode, subclass or transform between: what the dispatcher would call, but earlier.
            return kernel(*args)
        return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)


def is_functional(tensor: torch.Tensor) -> bool:
    """Tell whether a compiler traces what is done with the tensor."""
    return FunctionalTensor is not None and isinstance(tensor, FunctionalTensor)


def is_transforming() -> bool:
    """Tell whether a transform of torch.func or forward-mode AD is at work."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


@lru_cache
def has_fast_half(dtype: torch.dtype) -> bool:
    """Tell whether this CPU multiplies matrices in that dtype; if not, torch takes 9 times float32's time."""
    if dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cpu._is_amx_fp16_supported()


_keeping_whole = False


def replace_cache_tag(before: str, after: str) -> None:
    """Replace one part of the key of the compile caches, which know nothing of choices outside the graph."""
    config = torch.compiler.config
    config.cache_key_tag = config.cache_key_tag.replace(before, "") + after


def trace_through(op: str, kernel: Callable[..., Any], library: Any) -> None:
    """Let the compiler see the aten that ``kernel`` runs in place of the operator.

    AOTAutograd traces under functionalization; there the rule runs the kernel, as ``torch.library.triton_op``
    does. ``torch.export`` keeps the operator whole, and so does everyone within ``keep_operators_whole``.
    """

    def rule(mode: Any, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        if _keeping_whole or _export_keeps_operators():
            return mode.__torch_dispatch__(func, types, args, kwargs or {})
        with mode:
            return kernel(*args, **(kwargs or {}))

    if FunctionalTensorMode is not None:
        torch.library.register_torch_dispatch(op, FunctionalTensorMode, rule, lib=library)


def _export_keeps_operators() -> bool:
    try:
        from torch.export._trace import custom_triton_ops_decomposition_disabled
    except ImportError:  # not knowing, keep it: opaque, it still runs
        return True
    return custom_triton_ops_decomposition_disabled()


@contextmanager
def keep_operators_whole() -> Iterator[None]:
    """Switch the rules of ``trace_through`` off; the compile caches tell the two kinds of graph apart."""
    global _keeping_whole
    config = torch.compiler.config
    before, tag = _keeping_whole, config.cache_key_tag
    _keeping_whole, config.cache_key_tag = True, f"{tag}dcn_ops:whole;"
    try:
        yield
    finally:
        _keeping_whole, config.cache_key_tag = before, tag


def tag_compile_caches(package: Path) -> None:
    """Add the package's sources to the key of the compile caches.

    Those caches know the operator by its name: without the tag, a process after a change of the kernels would
    get the code that was compiled before it.
    """
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    config = torch.compiler.config
    config.cache_key_tag = f"{config.cache_key_tag}dcn_ops:{digest.hexdigest()[:16]};"


# The module that registers torch's own translations to ONNX, on the first export of a process. It imports
# onnxscript, which takes a second.
_ONNX_TRANSLATIONS = "torch.onnx._internal.exporter._torchlib.ops"


def translate_to_onnx(op: Any, translation: Callable[..., Any], opset: int, below: Callable[..., Any]) -> None:
    """Give ``torch.onnx.export(dynamo=True)`` a translation from ``opset`` on, a decomposition below."""

    def register(_: ModuleType) -> None:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

        onnx_impl(op, trace_only=True, opset_introduced=opset)(translation)
        # The exporter decomposes by this table what its registry lacks at the requested opset. Not before it is
        # imported: where CI is set in the environment, Inductor takes no whole operator that stands in this table.
        torch._decomp.decomposition_table[op] = below

    after_import(_ONNX_TRANSLATIONS, register)


def after_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call ``function`` with a module once that is imported: now, or whenever somebody imports it."""
    if name in sys.modules:
        function(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, function))


class _AfterImport(MetaPathFinder):
    def __init__(self, name: str, function: Callable[[ModuleType], None]) -> None:
        self.name, self.function = name, function

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                self.function(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
