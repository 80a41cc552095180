"""Which convolutions read the image. If no forward pass shows it, their channels decide."""

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Without an input_size, an input of up to so many channels counts as an image, as satellite images have them. An
# input with more channels counts as another network's features.
MOST_CHANNELS = 13
_USUAL = (3, 1, 4, 2)


class FromImage(TorchDispatchMode):
    """While active, follows an image through operators that keep its channels: resizing, padding, slices.

    The result of any operator is still the image, except that of a convolution or a matrix product.
    """

    def __init__(self) -> None:
        super().__init__()
        # Keyed by identity, and kept alive, so that no later storage has the same identity. Views share a storage.
        self._storages: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Mark a tensor as the image."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def __contains__(self, value: object) -> bool:
        """Tell whether a value is a tensor that comes from the image."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Operators with a FLOP formula mix channels by weights; new_zeros and zeros_like use only the shape.
        name = func._schema.name.partition("::")[2]
        follows = func._overloadpacket not in flop_registry and not name.startswith("new_") and "_like" not in name
        if follows and any(leaf in self for leaf in tree_leaves((args, kwargs))):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.add(leaf)
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
