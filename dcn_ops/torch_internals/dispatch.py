"""The dispatcher: calls below the Autograd key.

Without these names autograd is registered by ``torch.library.register_autograd``: calls take longer, and
there are no gradients of gradients.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def _plain_bits(device: str) -> int:
    keys = (getattr(torch._C.DispatchKey, name) for name in (device, f"Autograd{device}"))
    first, second = (torch._C.DispatchKeySet(key) for key in keys)
    return (first | second).raw_repr()


try:
    _below_autograd = torch._C._AutoDispatchBelowADInplaceOrView
    _keys_below_autograd = torch._C._after_ADInplaceOrView_keyset
    # For a call without mode, subclass or transform: the bits of its keys, and the key of its device.
    _PLAIN = {_plain_bits(device): getattr(torch._C.DispatchKey, device) for device in ("CPU", "CUDA")}
    _has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    HAS_KEYSETS = True
except AttributeError:
    HAS_KEYSETS = False


def below_autograd(op: Any, kernel: Callable[..., Any], keyset: Any, *args: Any) -> Any:
    """Call the kernel below the Autograd key of ``op``; ``kernel`` is its kernel for every device."""
    # Also below ADInplaceOrView: then autograd doesn't track a kernel's last permute as a view, and the caller may
    # change the output in place.
    with _below_autograd():
        device = _PLAIN.get(keyset.raw_repr())
        if device is not None and not _has_kernel(_name(op), device):
            # Without mode, subclass, transform or another library's kernel the dispatcher calls the same, later.
            return kernel(*args)
        return op.redispatch(keyset & _keys_below_autograd, *args)


@cache
def _name(op: Any) -> str:
    return op.name()


def has_device_kernel(op: Any, device: str) -> bool:
    """Tell whether somebody registered a kernel of ``op`` for a type of device, such as "cpu"."""
    try:
        key = torch._C._dispatch_key_for_device(device)
        return torch._C._dispatch_has_kernel_for_dispatch_key(_name(op), key)
    except AttributeError:
        return False


def autocast_keys() -> list[str]:
    """Return the dispatch keys of autocast, one for each type of device."""
    try:
        keys = [name for name in dir(torch._C.DispatchKey) if name.startswith("Autocast")]
    except AttributeError:
        keys = ["AutocastCPU", "AutocastCUDA"]
    return [key for key in keys if key != "AutocastFunctionality"]


def is_transforming() -> bool:
    """Tell whether a transform of torch.func or forward-mode AD is active."""
    try:
        return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    except AttributeError:
        return False
