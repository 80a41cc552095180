"""A copy of a network without its data, on the meta device."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The names of the dicts of hooks that every module has.
_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy with all tensors on the meta device; the model stays unchanged.

    Tensors in attributes, lists and dicts are replaced like parameters and buffers. Shared tensors stay shared. No
    weight is copied. The copy has no hooks except those that compute a weight (``weight_norm``, ``prune``).

    Raises:
        Exception: If ``copy.deepcopy`` can't copy the model, its exception.
    """
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    for module in modules:
        # A user's hook expects data, and may hold anything. deepcopy uses the entries of the memo.
        memo |= {id(vars(module)[name]): OrderedDict() for name in _HOOKS}
    with _WithoutData():
        twin = copy.deepcopy(model, memo)
        for module in modules:
            kept = {key: hook for key, hook in module._forward_pre_hooks.items() if _computes_weight(hook)}
            memo[id(module._forward_pre_hooks)].update(copy.deepcopy(kept, memo))
    return twin


def _computes_weight(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


class _WithoutData(TorchFunctionMode):
    """While active, deepcopy makes empty tensors on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = _empty(tensor)
            return memo[id(tensor)]
        # A Parameter copies itself with clone.
        return _empty(args[0]) if func is Tensor.clone else func(*args, **(kwargs or {}))


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
