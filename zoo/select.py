"""Which convolutions become deformable: predicates that return None, or the reason why not."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from zoo.config import DCNConfig
from zoo.convert import kind, parents, sides
from zoo.layers import DEFORMABLE


def refusal(
    conv: nn.Conv2d, *, reads_image: bool, positions: int | None, computes_output: bool = False
) -> str | None:
    """Tell why a convolution can't become deformable, or is better left as it is; None if it can.

    ``positions`` is the number of its outputs in a forward pass; None if unknown.
    """
    if type(conv) not in DEFORMABLE:
        return f"{type(conv).__name__} has its own forward"
    if max(conv.kernel_size) < 3:
        return f"kernel {_by(conv.kernel_size)}"
    if tuple(conv.stride) == tuple(conv.kernel_size):
        return f"patch embedding: kernel and stride are {_by(conv.kernel_size)}"
    if not conv.weight.is_floating_point():
        return f"{conv.weight.dtype} instead of a floating dtype"
    return role(reads_image=reads_image, positions=positions, computes_output=computes_output)


def role(*, reads_image: bool, positions: int | None, computes_output: bool) -> str | None:
    """Tell why a layer should stay as it is, whatever it is; None if it may change."""
    if reads_image:
        return "reads the image"
    if positions == 0:
        return "is not called in a forward pass; other code may read its weight"
    if computes_output:
        return "computes an output of the network; output_layers=True converts it"
    return None


def mismatch(conv: nn.Conv2d, names: Sequence[str], stage: int | None, config: DCNConfig) -> str | None:
    """Tell why the config doesn't select a convolution with these names."""
    if config.stages is not None and stage not in config.stages:
        where = "after the last stage" if stage is None else f"stage {stage}"
        return f"{where}, not in stages={config.stages}"
    if kind(conv) not in config.kinds:
        return f"{kind(conv)}, not in kinds={config.kinds}"
    if config.kernels is not None and max(sides(conv)) not in config.kernels:
        return f"kernel {_by(sides(conv))}, not in kernels={config.kernels}"
    if not _matches(names, config.include):
        return f"not in include={config.include}"
    if _matches(names, config.exclude):
        return f"in exclude={config.exclude}"
    if config.where is not None and not any(config.where(name, conv) for name in names):
        return "where() is false"
    return None


def block_of(name: str, model: nn.Module) -> str:
    """Return the block of a convolution, "layer3.5" of "layer3.5.conv2"; its own name if it has no block.

    The block is its nearest ancestor with a number that contains another layer with weights.
    """
    for parent in reversed(parents(name)):
        layers = (m for m in model.get_submodule(parent).modules() if isinstance(m, nn.Conv2d | nn.Linear))
        if parent[-1:].isdigit() and sum(1 for _ in layers) > 1:
            return parent
    return name


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
