"""Whether a saved network can be rebuilt: it is built again without data, and compared with the original."""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from zoo.check import Size
from zoo.meta import meta_copy


def create(**arguments: Any) -> nn.Module:
    """Return ``timm.create_model("dcn", **arguments)``, on the meta device if timm can build it there."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return timm.create_model("dcn", **arguments)
        except NotImplementedError:  # RegNets, before timm 1.0.30
            return timm.create_model("dcn", **arguments)


def difference(model: nn.Module, rebuilt: nn.Module, size: Size) -> str | None:
    """Tell what differs between two networks, except the values of their weights; None if nothing does.

    Names and shapes of the weights are compared. The operators of a forward pass in eval mode on images of ``size``
    are compared too, if both run without data, because activations, strides and pooling have no weights.
    """
    ours, theirs = ({key: list(w.shape) for key, w in m.state_dict().items()} for m in (model, rebuilt))
    for key in (*ours, *theirs):
        if ours.get(key) != theirs.get(key):
            return f"{key} has the shape {ours.get(key)}, rebuilt {theirs.get(key)}"
    calls, again = _operators(model, size), _operators(rebuilt, size)
    if calls is None or again is None or calls == again:
        return None
    pairs = zip([*calls, "nothing"], [*again, "nothing"], strict=False)
    here, there = next((here, there) for here, there in pairs if here != there)
    return f"it computes {here}, rebuilt it computes {there}"


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(lambda value: list(value.shape) if isinstance(value, Tensor) else value, (args, kwargs))
        self.calls.append(f"{func}{given}")
        return func(*args, **(kwargs or {}))


def _operators(model: nn.Module, size: Size) -> list[str] | None:
    """Return the operators of a forward pass without data; None if the network doesn't run without data."""
    try:
        twin = meta_copy(model).float().eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _Operators() as operators:
            twin(torch.empty(1, *size, device="meta"))
    except Exception:
        return None
    return operators.calls
