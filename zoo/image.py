"""Which convolutions read the image: where no forward pass tells, by their channels."""

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Without an input_size, what a network reads is taken for an image up to so many channels, as satellites have; with
# more, for the features of another network.
MOST_CHANNELS = 13
_USUAL = (3, 1, 4, 2)


class FromImage(TorchDispatchMode):
    """While it is on, follows an image through what doesn't mix its channels by weights: resizing, padding, slices.

    Whatever is computed of the image by another operator than a convolution or a matrix product is still the image.
    """

    def __init__(self) -> None:
        super().__init__()
        # By identity, and alive, so that no later storage has the same. Views share one.
        self._storages: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Take a tensor for the image."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def __contains__(self, value: object) -> bool:
        """Tell whether a value is a tensor that comes from the image."""
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # What has a FLOP formula mixes by weights; new_zeros and zeros_like take the shape alone.
        name = func._schema.name.partition("::")[2]
        follows = func._overloadpacket not in flop_registry and not name.startswith("new_") and "_like" not in name
        if follows and any(leaf in self for leaf in tree_leaves((args, kwargs))):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.add(leaf)
        return out


def likely_channels(model: nn.Module) -> list[int]:
    """Return the channels that an image for this network may have, the likeliest first.

    Three, one or four where a convolution takes so many, or else what the first one takes; then what others take,
    as few as images have; at last the usual ones, for what folds pixels into channels before it convolves.
    """
    taken = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    guess = next((channels for channels in _USUAL if channels in taken), taken[0] if taken else 3)
    return list(dict.fromkeys((guess, *(channels for channels in taken if channels <= MOST_CHANNELS), *_USUAL)))


def likely_readers(model: nn.Module, channels: int) -> set[nn.Conv2d]:
    """Return the convolutions that mix as many channels as the image has, or as few as an image usually has."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    return {conv for conv in convs if conv.in_channels == channels or conv.in_channels <= max(_USUAL)}
