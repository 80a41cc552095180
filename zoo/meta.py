"""Copies of a network for a forward pass: without its data, on the meta device, or with its weights."""

import copy
from collections import OrderedDict
from collections.abc import Callable
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
    return _copied(model, _Copying(_empty, _empty))


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy like ``meta_copy``'s with data. Parameters share their memory; other tensors are copied.

    Raises:
        Exception: If ``copy.deepcopy`` can't copy the model, its exception.
    """
    return _copied(model, _Copying(lambda tensor: tensor.detach().clone(), lambda tensor: tensor))


def _copied(model: nn.Module, mode: TorchFunctionMode) -> nn.Module:
    modules = list(model.modules())
    memo: dict[int, Any] = {}
    for module in modules:
        # A user's hook expects data, and may hold anything. deepcopy uses the entries of the memo.
        memo |= {id(vars(module)[name]): OrderedDict() for name in _HOOKS}
    with mode:
        twin = copy.deepcopy(model, memo)
        for module in modules:
            kept = {key: hook for key, hook in module._forward_pre_hooks.items() if _computes_weight(hook)}
            memo[id(module._forward_pre_hooks)].update(copy.deepcopy(kept, memo))
    return twin


def _computes_weight(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils.")


class _Copying(TorchFunctionMode):
    """While active, deepcopy makes tensors as ``copied``, and Parameters' data as ``held``, say."""

    def __init__(self, copied: Callable[[Tensor], Tensor], held: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._copied, self._held = copied, held

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._copied(tensor)
            return memo[id(tensor)]
        # A Parameter copies itself with clone.
        return self._held(args[0]) if func is Tensor.clone else func(*args, **(kwargs or {}))


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
