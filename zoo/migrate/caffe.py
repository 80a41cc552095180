"""ResNets in caffe's style: the stride is in the first convolution (1x1) of a block, not in the 3x3.

So are detectron2's ResNets from MSRA's weights, and mmdetection's with ``style="caffe"``. Their images are BGR,
from 0 to 255, minus the mean.
"""

from typing import Any

import timm
from timm.models import register_model
from torch import nn

_SUFFIX = "_caffe"
CAFFE = ("resnet50", "resnet101", "resnet152")  # what timm.create_model builds with the suffix
# Of BGR images from 0 to 1, as timm's transforms take them.
_IMAGES = {"mean": tuple(value / 255 for value in (103.53, 116.28, 123.675)), "std": (1 / 255,) * 3}


def is_caffe(model: nn.Module) -> bool:
    """Tell whether a network was built in caffe's style."""
    return _architecture(model).endswith(_SUFFIX)


def to_caffe_(model: Any) -> None:
    """Move the strides of a ResNet of timm's to caffe's places, if they aren't there, and say so in its config.

    Raises:
        ValueError: If its blocks have no 1x1 convolutions.
    """
    if "layer1.0.conv3.weight" not in model.state_dict():
        raise ValueError(f"expected bottlenecks for caffe's style, got {_architecture(model)!r}; pass caffe=False")
    for stage in ("layer2", "layer3", "layer4"):
        block: Any = next(iter(getattr(model, stage, ())), None)
        if block is not None and block.conv1.stride == (1, 1):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    if _architecture(model) in CAFFE:
        name = _architecture(model) + _SUFFIX
        model.pretrained_cfg = {**model.pretrained_cfg, "architecture": name, **_IMAGES}


def _architecture(model: nn.Module) -> str:
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))


def _register(base: str) -> None:
    def build(pretrained: bool = False, *, pretrained_cfg: Any = None, **kwargs: Any) -> Any:
        if pretrained:
            raise ValueError(f"timm has no weights for {base + _SUFFIX}; zoo.migrate.load_ takes detectron2's")
        # That of a saved network already has the suffix, and its own mean.
        model = timm.create_model(base, pretrained_cfg=pretrained_cfg, **kwargs)
        to_caffe_(model)
        return model

    build.__name__ = base + _SUFFIX
    build.__doc__ = f"{base} with the strides in the 1x1 convolutions, as in caffe and detectron2."
    register_model(build)


for _base in CAFFE:
    _register(_base)
