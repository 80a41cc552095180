"""The convolutions of a network, each with its names, its part, its stage and its role."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from timm.layers import CondConv2d
from torch import nn

from zoo.forward import Measured
from zoo.parts import BACKBONE, DECODER, HEAD, timm_backbones
from zoo.stages import find_name, stage_by_name, stage_by_stride


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution.

    Attributes:
        conv: The module.
        names: All its names, several if it is shared.
        part: The part of the first name.
        stage: The stage of the first name; None outside the backbone, or if it is unknown.
        reads_image: Whether its input is the image.
        computes_output: Whether it is a layer of decoder or head whose results no other layer reads.
        feeds_output: Whether all layers that read its results compute outputs.
        positions: Number of its outputs per channel; 0 if it is not called, None if that is unknown.
    """

    conv: nn.Conv2d
    names: tuple[str, ...]
    part: str
    stage: int | None
    reads_image: bool
    computes_output: bool
    feeds_output: bool
    positions: int | None


def find_sites(model: nn.Module, parts: Mapping[str, str], measured: Measured) -> list[Site]:
    """Return the convolutions of a network, in order of definition."""
    names: defaultdict[nn.Conv2d, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        # CondConv2d has the attributes of a convolution; it is refused with its reason.
        if isinstance(module, nn.Conv2d | CondConv2d):
            names[cast("nn.Conv2d", module)].append(name)
    readers, stages = _image_readers(model, measured), _stages_of_timm(model)
    return [_site(conv, tuple(n), parts[n[0]], stages, readers, measured) for conv, n in names.items()]


def _site(
    conv: nn.Conv2d,
    names: tuple[str, ...],
    part: str,
    stages: Mapping[str, int | None],
    readers: set[nn.Conv2d],
    measured: Measured,
) -> Site:
    ends = part in (DECODER, HEAD)
    consumers = measured.consumers.get(conv, set())
    return Site(
        conv=conv,
        names=names,
        part=part,
        stage=_stage(names[0], conv, stages, measured) if part == BACKBONE else None,
        reads_image=conv in readers,
        computes_output=ends and not consumers,
        feeds_output=ends and bool(consumers) and all(measured.computes_output(layer) for layer in consumers),
        positions=measured.positions.get(conv),
    )


def _stage(name: str, conv: nn.Conv2d, stages: Mapping[str, int | None], measured: Measured) -> int | None:
    if name in stages:
        return stages[name]
    stride = measured.strides.get(conv)
    return None if stride is None else stage_by_stride(stride)


def _stages_of_timm(model: nn.Module) -> dict[str, int | None]:
    """Return the stage of each name in timm's networks whose feature_info is enough."""
    stages: dict[str, int | None] = {}
    for root in timm_backbones(model):
        inside = stage_by_name(model.get_submodule(root)) or {}
        stages |= {".".join(filter(None, (root, name))): stage for name, stage in inside.items()}
    return stages


def _image_readers(model: nn.Module, measured: Measured) -> set[nn.Conv2d]:
    """Return the convolutions that timm names, and outside of timm's networks those that the forward pass found."""
    found = set(measured.readers)
    for root in timm_backbones(model):
        network: Any = model.get_submodule(root)
        modules = dict(network.named_modules(remove_duplicate=False))
        first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv") or ()
        names = [find_name(modules, name) for name in ([first] if isinstance(first, str) else first)]
        named = {modules[name] for name in names if name is not None}
        if named:
            found = (found - set(modules.values())) | named
    return found
