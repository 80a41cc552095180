"""Which convolutions become deformable: predicates that answer None, or the reason against it."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from zoo.config import DCNConfig

# Methods that fold a block's branches into one convolution: they read the weight and lose the offsets.
_FUSING = ("reparameterize", "switch_to_deploy", "fuse")


def refusal(conv: nn.Conv2d, ancestors: Iterable[nn.Module], *, reads_image: bool) -> str | None:
    """Tell why a convolution can't become deformable, whatever the config says."""
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} instead of nn.Conv2d"
    if conv.kernel_size != (3, 3):
        return f"kernel {conv.kernel_size[0]}x{conv.kernel_size[1]} instead of 3x3"
    if conv.groups == conv.in_channels > 1:
        return "depthwise, so that its offsets would cost more than itself"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r} instead of 'zeros'"
    if not conv.weight.is_floating_point():
        return f"{conv.weight.dtype} instead of a floating dtype"
    if reads_image:
        return "reads the image"
    return _fusion(ancestors)


def _fusion(ancestors: Iterable[nn.Module]) -> str | None:
    for block in ancestors:
        for name in (*dir(type(block)), *vars(block)):
            if (name in _FUSING or name.startswith("fuse_conv")) and callable(getattr(block, name)):
                return f"inside a {type(block).__name__}, whose {name}() would drop the offsets"
    return None


def mismatch(names: Sequence[str], stage: int | None, config: DCNConfig) -> str | None:
    """Tell why the config doesn't ask for a convolution of these names."""
    if config.stages is not None and stage not in config.stages:
        where = "behind the last stage" if stage is None else f"stage {stage}"
        return f"{where}, not in stages={config.stages}"
    if not _matches(names, config.include):
        return f"not in include={config.include}"
    if _matches(names, config.exclude):
        return f"in exclude={config.exclude}"
    return None


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
