"""The private Python names of torch, so that a new torch breaks this file alone.

Tried on torch 2.11 and 2.15.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


_Key = torch._C.DispatchKey


def _plain_bits(device: str) -> int:
    keys = (getattr(_Key, name) for name in (device, f"Autograd{device}"))
    first, second = (torch._C.DispatchKeySet(key) for key in keys)
    return (first | second).raw_repr()


_PLAIN = {_plain_bits("CPU"): _Key.CPU, _plain_bits("CUDA"): _Key.CUDA}


def below_autograd(op: Any, kernel: Callable[..., Any], keyset: Any, *args: Any) -> Any:
    """Call what follows the Autograd key of ``op``, whose kernel of every device is ``kernel``."""
    # Below ADInplaceOrView too: a kernel's last permute is then no view that autograd tracks, and the caller may
    # change the output in place.
    with torch._C._AutoDispatchBelowADInplaceOrView():
        device = _PLAIN.get(keyset.raw_repr())
        if device is not None and not op.has_kernel_for_dispatch_key(device):
            # No mode, subclass, transform or kernel of somebody else: what the dispatcher would call, but earlier.
            return kernel(*args)
        return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)


def has_device_kernel(op: Any) -> bool:
    """Tell whether somebody registered a kernel of ``op`` for the CPU or for CUDA."""
    return any(op.has_kernel_for_dispatch_key(device) for device in _PLAIN.values())


def autocast_keys() -> list[str]:
    """Return the dispatch keys of autocast, one for each type of device."""
    keys = (name for name in dir(torch._C.DispatchKey) if name.startswith("Autocast"))
    return [key for key in keys if key != "AutocastFunctionality"]


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


# What torch calls the user's own part of the key of its compile caches has ours, "dcn_ops:...;", at its end.
_OURS = re.compile("dcn_ops:[^;]*;")


def digest_of(package: Path) -> str:
    """Return a hash of the sources of a package."""
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def tag_caches(tag: str) -> None:
    """Put ``tag`` into the key of the compile caches, for every thread."""
    entry = _cache_key_entry()
    # From torch 2.14 on an assignment to the config reaches this thread alone.
    for name in ("env_value_default", "default"):
        value = getattr(entry, name, None)
        if isinstance(value, str):
            setattr(entry, name, _tagged(value, tag))
            break
    tag_caches_of_thread(tag)


def tag_caches_of_thread(tag: str) -> None:
    """Put ``tag`` into the key of the compile caches where this thread has a key of its own."""
    config = torch.compiler.config
    value = _tagged(config.cache_key_tag, tag)
    if value != config.cache_key_tag:
        config.cache_key_tag = value


@contextmanager
def tagged_caches(tag: str) -> Iterator[None]:
    """Put ``tag`` into the key of the compile caches of this thread, where torch has a key for each thread."""
    config = torch.compiler.config
    value, of_thread = _tagged(config.cache_key_tag, tag), getattr(_cache_key_entry(), "user_override", None)
    if not isinstance(of_thread, ContextVar):
        with config.patch(cache_key_tag=value):  # type: ignore[attr-defined]
            yield
        return
    token = of_thread.set(value)
    try:
        yield
    finally:
        of_thread.reset(token)


def _cache_key_entry() -> Any:
    return getattr(torch.compiler.config, "_config", {}).get("cache_key_tag")


def _tagged(value: str, tag: str) -> str:
    return f"{_OURS.sub('', value)}dcn_ops:{tag};"


def trace_through(op: str, kernel: Callable[..., Any], stays_whole: Callable[..., bool], library: Any) -> None:
    """Let the compiler see the aten that ``kernel`` runs in place of the operator.

    AOTAutograd traces under functionalization; there the rule runs the kernel, as ``torch.library.triton_op``
    does. ``torch.export`` keeps the operator whole, and so does whom ``stays_whole`` says so of its arguments.
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
    except ImportError:  # not knowing, keep it: opaque, it still runs
        return True
    return custom_triton_ops_decomposition_disabled()


def is_ahead_of_time() -> bool:
    """Tell whether Inductor compiles a package, which runs where this library is not installed."""
    virtualized = sys.modules.get("torch._inductor.virtualized")
    return bool(getattr(getattr(virtualized, "V", None), "aot_compilation", False))


# The module that registers torch's own translations to ONNX, on the first export of a process. It imports
# onnxscript, which takes a second.
_ONNX_TRANSLATIONS = "torch.onnx._internal.exporter._torchlib.ops"


def translate_to_onnx(op: Any, translation: Callable[..., Any], opset: int, below: Callable[..., Any]) -> None:
    """Give ``torch.onnx.export(dynamo=True)`` a translation from ``opset`` on, a decomposition below."""

    def register(_: ModuleType) -> None:
        from torch.onnx._internal.exporter._torchlib._torchlib_registry import onnx_impl

        onnx_impl(op, trace_only=True, opset_introduced=opset)(translation)
        # What the registry lacks at the requested opset is decomposed by a table that the exporter makes of torch's
        # own. Not into torch's own: fake tensors with symbolic sizes would follow it and get other strides, and
        # where CI is set in the environment, Inductor takes no whole operator that stands there.
        from torch.onnx._internal.exporter import _decomp

        make_table = _decomp.create_onnx_friendly_decomposition_table

        def with_ours(registered: Any) -> dict[Any, Any]:
            ours = {} if op in registered else {op: below}
            return {**ours, **make_table(registered)}

        _decomp.create_onnx_friendly_decomposition_table = with_ours  # type: ignore[assignment]

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
