"""A copy of a network without its data, on the meta device."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Of every module, by the names of their dicts.
_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose tensors are all on the meta device; the model stays as it is.

    Tensors in attributes, lists and dicts are replaced like parameters and buffers. What is shared stays shared. No
    weight is copied. The copy has no hooks, but for those that compute a weight (``weight_norm``, ``prune``).

    Raises:
        Exception: What ``copy.deepcopy`` raises for a model that it can't copy.
    """
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    for module in modules:
        # A user's hook is for data, and may hold anything. deepcopy takes what the memo has.
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
    """While it is on, deepcopy makes empty tensors on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = _empty(tensor)
            return memo[id(tensor)]
        # A Parameter copies itself by its clone.
        return _empty(args[0]) if func is Tensor.clone else func(*args, **(kwargs or {}))


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
