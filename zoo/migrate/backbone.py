"""The ResNet in a checkpoint: its prefix, its names in timm, and which architecture of timm's it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import timm
from torch import Tensor

from zoo.convert import LayerArguments
from zoo.migrate.caffe import CAFFE

# The first convolution after the stem, and the source that calls it so.
_FIRST = {
    "layer1.0.conv1.weight": "torchvision",  # and mmdetection, mmsegmentation, CenterNet
    "res2.0.conv1.weight": "detectron2",
    "layers.0.0.conv1.weight": "YOLACT++",
}
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "torchvision": (
        (r"stem\.7\.", "bn1."),
        (r"stem\.(\d)\.", r"conv1.\1."),
        (r"(conv1|bn1|fc|layer[1-4])\.", r"\1."),
    ),
    "detectron2": (
        (r"stem\.conv1\.norm\.", "bn1."),
        (r"stem\.conv1\.", "conv1."),
        (r"res([2-5])\.", lambda found: f"layer{int(found[1]) - 1}."),  # type: ignore[dict-item]
    ),
    "YOLACT++": (
        (r"layers\.([0-3])\.", lambda found: f"layer{int(found[1]) + 1}."),  # type: ignore[dict-item]
        (r"(conv1|bn1)\.", r"\1."),
    ),
}
_IN_BLOCKS = (
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)
_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A ResNet of a checkpoint.

    Attributes:
        source: Whose names it has: "torchvision" (also mmdetection's), "detectron2" or "YOLACT++".
        prefix: What its names start with, such as "backbone.".
        weights: Its tensors, by timm's names.
        layers: Its deformable layers, by timm's names.
        names: The name in timm of each of its tensors.
        folded: Layers whose bias went into the running mean of the BatchNorm behind them.
    """

    source: str
    prefix: str
    weights: dict[str, Tensor]
    layers: dict[str, LayerArguments]
    names: dict[str, str]
    folded: tuple[str, ...]

    def is_caffe(self, config: str) -> tuple[bool, str]:
        """Tell whether the strides are in the 1x1 convolutions, and how one knows; the weights don't tell.

        Args:
            config: The text of the config in the checkpoint, or "".
        """
        style = re.search(r"""\bstyle['"]?\s*[=:]\s*['"](caffe|pytorch)['"]""", config)
        if style:
            return style[1] == "caffe", f"the config in the checkpoint has style={style[1]!r}"
        if self.source == "detectron2" and architecture(self.weights) in CAFFE:
            return True, "detectron2's default, STRIDE_IN_1X1=True; pass caffe=False for weights from torchvision"
        return False, "the usual; pass caffe=True for style='caffe' or STRIDE_IN_1X1=True"


def find_backbone(weights: Mapping[str, Tensor], layers: Mapping[str, LayerArguments]) -> Backbone:
    """Return the ResNet among tensors, whose deformable layers have this library's keys.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = [
        (key.removesuffix(first), source)
        for first, source in _FIRST.items()
        for key in weights
        if key.endswith(first)
    ]
    found = [(prefix, source) for prefix, source in found if prefix == "" or prefix.endswith(".")]
    if not found:
        raise ValueError(_no_resnet(weights))
    if len(found) > 1:
        raise ValueError(
            f"expected one ResNet in the checkpoint, got {len(found)}, at {', '.join(repr(p) for p, _ in found)}; "
            "pass a dict of the tensors of one of them"
        )
    prefix, source = found[0]
    names = {key: name for key in weights if (name := _timm_name(key, prefix, source)) is not None}
    own = {name: weights[key] for key, name in names.items()}
    deformed = {
        name: arguments for key, arguments in layers.items() if (name := _timm_name(f"{key}.", prefix, source))
    }
    deformed = {name.rstrip("."): arguments for name, arguments in deformed.items()}
    # timm's convolutions have no bias before a BatchNorm.
    means = {
        name: re.sub(r"\.conv(\d)$", r".bn\1.running_mean", name) for name in deformed if f"{name}.bias" in own
    }
    folded = tuple(name for name, mean in means.items() if mean in own)
    for name in folded:
        own[means[name]] = own[means[name]] - own.pop(f"{name}.bias")
    return Backbone(source=source, prefix=prefix, weights=own, layers=deformed, names=names, folded=folded)


def _no_resnet(weights: Mapping[str, Tensor]) -> str:
    some = ", ".join(list(weights)[:3])
    words = ("attn", "patch_embed", "pos_embed", "self_attn")
    kind = "a transformer's, " if any(word in key for key in weights for word in words) else ""
    return (
        f"found no ResNet or ResNeXt among {len(weights)} tensors ({kind}such as {some}); of other networks, "
        "zoo.migrate.replace_ takes over the layers, with the network's own code"
    )


def _timm_name(key: str, prefix: str, source: str) -> str | None:
    if not key.startswith(prefix):
        return None
    own = key.removeprefix(prefix)
    for pattern, name in _NAMES[source]:
        own, count = re.subn(f"^{pattern}", name, own)
        if count:
            break
    else:
        return None
    if source == "detectron2":
        for pattern, name in _IN_BLOCKS:
            own = re.sub(pattern, name, own)
    return own


def architecture(weights: Mapping[str, Tensor]) -> str:
    """Return timm's name for a ResNet with these tensors, by timm's names.

    Raises:
        ValueError: If timm has none.
    """
    blocks = {(int(found[1]), int(found[2])) for key in weights if (found := re.match(r"layer(\d)\.(\d+)\.", key))}
    depths = tuple(sum(stage == s for s, _ in blocks) for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in weights
    depth = _DEPTHS.get((bottleneck, depths))
    width, per_group = weights["layer1.0.conv2.weight"].shape[:2]
    deep = "conv1.0.weight" in weights
    average = any(key.endswith("downsample.2.weight") for key in weights)
    style = {(False, False): "", (True, False): "c", (True, True): "d"}.get((deep, average), "?")
    name = f"resnet{depth}{style}"
    if width != per_group:
        name = f"resnext{depth}_{width // per_group}x{per_group}d{style}"
    elif bottleneck and width != 64:
        name = f"wide_resnet{depth}_{width // 64}{style}"
    if depth is None or not timm.is_model(name):
        raise ValueError(
            f"timm has no ResNet with {depths} blocks, of {width} channels in groups of {per_group}, "
            f"{'with' if deep else 'without'} a deep stem; build yours and use zoo.migrate.load_(model, checkpoint)"
        )
    return name
