"""What layers read: the image, or results of other layers. If no forward pass shows it, their channels decide."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Without an input_size, an input of up to so many channels counts as an image, as satellite images have them. An
# input with more channels counts as another network's features.
MOST_CHANNELS = 13
_USUAL = (3, 1, 4, 2)


IMAGE = "the image"
Origin = str | nn.Module


class Origins(TorchDispatchMode):
    """While active, follows the image, and results of layers, until a layer with weights reads them.

    Resizing, padding, slices, activations and all other operators are followed; a convolution or a matrix product
    is a reader.

    Attributes:
        layer: The layer that runs now; None if it is unknown.
        readers: The layers that read something of each origin.
    """

    def __init__(self) -> None:
        super().__init__()
        # Keyed by identity, and kept alive, so that no later storage has the same identity. Views share a storage.
        self._storages: dict[int, Any] = {}
        self._origins: defaultdict[int, set[Origin]] = defaultdict(set)
        self.layer: nn.Module | None = None
        self.readers: defaultdict[Origin, set[nn.Module | None]] = defaultdict(set)

    def add(self, tensor: Tensor, origins: Iterable[Origin]) -> None:
        """Mark a tensor as the image, or as a layer's result."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        self._origins[storage._cdata].update(origins)

    def of(self, value: object) -> set[Origin]:
        """Return where a value comes from."""
        return self._origins.get(value.untyped_storage()._cdata, set()) if isinstance(value, Tensor) else set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        # Boxes tell a pooling of regions where to read, not what.
        leaves = tree_leaves(args[:1] if "roi_" in name else (args, kwargs))
        origins = set[Origin]().union(*(self.of(leaf) for leaf in leaves))
        if not origins:
            return out
        # Operators with a FLOP formula mix channels by weights; new_zeros and zeros_like use only the shape.
        if func._overloadpacket in flop_registry:
            for origin in origins:
                self.readers[origin].add(self.layer)
        elif not name.startswith("new_") and "_like" not in name:
            for leaf in tree_leaves(out):
                # An index, such as topk's, is no result of a layer; an image may be of integers.
                if isinstance(leaf, Tensor):
                    self.add(leaf, origins if leaf.is_floating_point() else origins & {IMAGE})
        return out


def likely_channels(model: nn.Module) -> list[int]:
    """Return the channels that an image for this network may have, the likeliest first.

    First three, one, four or two if a convolution takes as many, else the channels of the first convolution. Then
    the channels of other convolutions, if an image may have as many. Last the usual numbers, for networks that fold
    pixels into channels before they convolve.
    """
    taken = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    guess = next((channels for channels in _USUAL if channels in taken), taken[0] if taken else 3)
    return list(dict.fromkeys((guess, *(channels for channels in taken if channels <= MOST_CHANNELS), *_USUAL)))


def likely_readers(model: nn.Module, channels: int) -> set[nn.Conv2d]:
    """Return the ungrouped convolutions with as many channels as the image, or as few as an image usually has."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    return {conv for conv in convs if conv.in_channels == channels or conv.in_channels <= max(_USUAL)}
