"""The deformable layers of a network, and their inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dcn_ops import DeformConv2d


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of a layer from a hook's arguments, for positional and keyword calls."""
    return args[0] if args else kwargs["input"]


def deformable_layers(model: nn.Module) -> dict[str, DeformConv2d]:
    """Return the layers that predict their offsets, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, DeformConv2d) and m.predict_offsets}


@contextmanager
def watched(model: nn.Module, seen: Any) -> Iterator[None]:
    """Call ``seen(name, layer, input)`` before each deformable layer runs."""

    def hook(name: str) -> Any:
        return lambda layer, args, kwargs: seen(name, layer, input_of(args, kwargs))

    layers = deformable_layers(model).items()
    handles = [m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
