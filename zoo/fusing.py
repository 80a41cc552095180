"""Blocks that fold their branches into one convolution read its weight, and would lose the offsets."""

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

# The methods that timm's reparameterize_model calls.
_METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def keep_unfused(blocks: Iterable[nn.Module]) -> None:
    """Make the folding methods of blocks return the block unchanged, with a warning."""
    for block in blocks:
        for name in folding_methods(block):
            # A bound method would be pickled by its name, which the block's class lacks.
            setattr(block, name, partial(_kept, block))


def allow_fusing(blocks: Iterable[nn.Module]) -> None:
    """Undo ``keep_unfused``."""
    for block in blocks:
        for name, value in list(vars(block).items()):
            if isinstance(value, partial) and value.func is _kept:
                delattr(block, name)


def folding_methods(block: nn.Module) -> list[str]:
    """Return the names of a block's methods that fold convolutions."""
    names = {*dir(type(block)), *vars(block)}
    return sorted(n for n in names if (n in _METHODS or n.startswith("fuse_conv")) and callable(getattr(block, n)))


def _kept(block: nn.Module, *_: Any, **__: Any) -> nn.Module:
    warnings.warn(
        f"{type(block).__name__} stays as it is: folding its branches would drop the offsets of the deformable "
        "convolutions inside; reparameterise the plain network, then convert it",
        stacklevel=2,
    )
    return block
