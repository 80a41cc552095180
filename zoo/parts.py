"""The parts of a detector or a segmenter, by the names of its modules: backbone, neck, decoder, head.

A backbone is a module with timm's ``feature_info``, or one that is called "backbone". A module called "encoder" is
one too if the network has no other. What is outside the backbone, and is neither a neck nor a decoder, is the head.
A network without a backbone inside is itself a backbone.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

BACKBONE, NECK, DECODER, HEAD = "backbone", "neck", "decoder", "head"
PARTS = (BACKBONE, NECK, DECODER, HEAD)

_NECKS = {"neck", "fpn", "bifpn", "pan", "pafpn"}


def find_parts(model: nn.Module) -> dict[str, str]:
    """Map the name of every module, the root's "" included, to its part."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if _is_timm(model):
        return dict.fromkeys(modules, BACKBONE)
    backbones = [name for name, m in modules.items() if name and (_last(name) == "backbone" or _is_timm(m))]
    backbones = backbones or [name for name in modules if _last(name) == "encoder"]
    if not backbones:
        return dict.fromkeys(modules, BACKBONE)
    parts = {"": HEAD}
    timm: set[str] = set()  # timm's own modules may have any names
    for name, module in modules.items():
        parent = name.rpartition(".")[0]
        if name and (parent in timm or _is_timm(module)):
            timm.add(name)
            parts[name] = BACKBONE
        elif name:
            parts[name] = _named(name, module, backbones) or parts[parent]
    return parts


def is_composite(parts: Mapping[str, str]) -> bool:
    """Tell whether the network has a backbone inside."""
    return parts[""] != BACKBONE


def outermost(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the modules at which a part starts: those whose parent belongs to another part."""
    return {name: part for name, part in parts.items() if name and part != parts[name.rpartition(".")[0]]}


def timm_backbones(model: nn.Module) -> list[str]:
    """Return the names of timm's networks, outermost ones only; [""] if the model itself is one."""
    found: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_timm(module) and not any(outer == "" or name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _named(name: str, module: nn.Module, backbones: list[str]) -> str | None:
    """Return the part that a module's name, or its class, tells; None if neither does."""
    last = _last(name)
    if name in backbones:
        return BACKBONE
    if last in _NECKS or "FeaturePyramid" in type(module).__name__:
        return NECK
    if last.endswith("decoder") or last == "decode_head":
        return DECODER
    if last == "encoder" and not any(inner.startswith(f"{name}.") for inner in backbones):
        # Detection transformers have an encoder between backbone and decoder.
        return None if any(name.startswith(f"{outer}.") for outer in backbones) else NECK
    return BACKBONE if last == "encoder" else None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_timm(module: nn.Module) -> bool:
    info: Any = getattr(module, "feature_info", None)
    return bool(info) or isinstance(getattr(module, "pretrained_cfg", None), dict)
