"""The dispatcher: what runs below the Autograd key.

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
    # Of a call with no mode, subclass or transform: the bits of its keys, and its device's key.
    _PLAIN = {_plain_bits(device): getattr(torch._C.DispatchKey, device) for device in ("CPU", "CUDA")}
    _has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    HAS_KEYSETS = True
except AttributeError:
    HAS_KEYSETS = False


def below_autograd(op: Any, kernel: Callable[..., Any], keyset: Any, *args: Any) -> Any:
    """Call what follows the Autograd key of ``op``, whose kernel of every device is ``kernel``."""
    # Below ADInplaceOrView too: a kernel's last permute is then no view that autograd tracks, and the caller may
    # change the output in place.
    with _below_autograd():
        device = _PLAIN.get(keyset.raw_repr())
        if device is not None and not _has_kernel(_name(op), device):
            # No mode, subclass, transform or kernel of somebody else: what the dispatcher would call, but earlier.
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
    """Tell whether a transform of torch.func or forward-mode AD is at work."""
    try:
        return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    except AttributeError:
        return False
