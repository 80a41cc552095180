"""The layers of a network that may become deformable, each with its names, its part, its stage and its role."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.layers import CondConv2d
from torch import nn

from zoo.forward import Measured
from zoo.parts import BACKBONE, DECODER, HEAD, timm_backbones
from zoo.stages import find_name, stage_by_name, stage_by_stride


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution or an average pooling.

    Attributes:
        layer: The module.
        names: All its names, several if it is shared.
        part: The part of the first name.
        stage: The stage of the first name; None outside the backbone, or if it is unknown.
        reads_image: Whether its input is the image.
        computes_output: Whether it is a layer of decoder or head whose results no other layer reads.
        feeds_output: Whether all layers that read its results compute outputs.
        positions: Number of its outputs per channel; 0 if it is not called, None if that is unknown.
        inputs: The shapes [N, C, H, W] of its inputs for one image, empty if they are unknown.
    """

    layer: nn.Module
    names: tuple[str, ...]
    part: str
    stage: int | None
    reads_image: bool
    computes_output: bool
    feeds_output: bool
    positions: int | None
    inputs: tuple[tuple[int, int, int, int], ...]

    @property
    def channels(self) -> int | None:
        """Channels of its input; None if they are unknown, as a pooling has no number of its own."""
        own = getattr(self.layer, "in_channels", None)
        return own or (self.inputs[0][1] if self.inputs else None)


def find_sites(model: nn.Module, parts: Mapping[str, str], measured: Measured) -> list[Site]:
    """Return the convolutions and average poolings of a network, in order of definition."""
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        # CondConv2d has the attributes of a convolution; it is refused with its reason.
        if isinstance(module, nn.Conv2d | nn.AvgPool2d | CondConv2d):
            names[module].append(name)
    readers, stages = _image_readers(model, measured), _stages_of_timm(model)
    return [_site(layer, tuple(n), parts[n[0]], stages, readers, measured) for layer, n in names.items()]


def _site(
    layer: nn.Module,
    names: tuple[str, ...],
    part: str,
    stages: Mapping[str, int | None],
    readers: set[nn.Module],
    measured: Measured,
) -> Site:
    ends = part in (DECODER, HEAD)
    consumers = measured.consumers.get(layer, set())
    return Site(
        layer=layer,
        names=names,
        part=part,
        stage=_stage(names[0], layer, stages, measured) if part == BACKBONE else None,
        reads_image=layer in readers,
        computes_output=ends and not consumers and not isinstance(layer, nn.AvgPool2d),
        feeds_output=ends and bool(consumers) and all(measured.computes_output(layer) for layer in consumers),
        positions=measured.positions.get(layer),
        inputs=tuple(measured.inputs.get(layer, ())),
    )


def _stage(name: str, layer: nn.Module, stages: Mapping[str, int | None], measured: Measured) -> int | None:
    if name in stages:
        return stages[name]
    stride = measured.strides.get(layer)
    return None if stride is None else stage_by_stride(stride)


def _stages_of_timm(model: nn.Module) -> dict[str, int | None]:
    """Return the stage of each name in timm's networks whose feature_info is enough."""
    stages: dict[str, int | None] = {}
    for root in timm_backbones(model):
        inside = stage_by_name(model.get_submodule(root)) or {}
        stages |= {".".join(filter(None, (root, name))): stage for name, stage in inside.items()}
    return stages


def _image_readers(model: nn.Module, measured: Measured) -> set[nn.Module]:
    """Return the layers that timm names, and outside of timm's networks those that the forward pass found."""
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
