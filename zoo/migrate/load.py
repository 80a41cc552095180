"""``load_`` and ``build``: a network of timm's with the weights and the deformable layers of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import timm
from torch import Tensor, nn

from zoo.check import check_network
from zoo.convert import LayerArguments
from zoo.inject import rebuild_
from zoo.migrate.backbone import architecture, find_backbone
from zoo.migrate.caffe import is_caffe, to_caffe_
from zoo.migrate.checkpoint import Checkpoint, read
from zoo.migrate.fit import Fit, fit
from zoo.migrate.report import Migration

Source = str | PathLike[str] | Mapping[str, object] | Checkpoint


def build(
    checkpoint: Source, *, caffe: bool | None = None, modulated: bool | None = None, **kwargs: Any
) -> tuple[nn.Module, Migration]:
    """Return the ResNet or ResNeXt of a checkpoint as a network of timm's, and what was loaded.

    Args:
        checkpoint: As in ``load_``.
        caffe: As in ``load_``.
        modulated: As in ``load_``.
        **kwargs: As in ``timm.create_model``, such as ``output_stride=8`` for mmsegmentation's d8 networks. Without
            a classifier in the checkpoint the network has none (``num_classes=0``).

    Raises:
        FileNotFoundError: As in ``load_``.
        ValueError: As in ``load_``, and if timm has no such architecture.
    """
    checkpoint = read(checkpoint, modulated=modulated)
    backbone = find_backbone(checkpoint.weights, checkpoint.layers)
    classes = len(backbone.weights["fc.weight"]) if "fc.weight" in backbone.weights else 0
    model = timm.create_model(architecture(backbone.weights), **{"num_classes": classes, **kwargs})
    return model, load_(model, checkpoint, caffe=caffe)


def load_(
    model: nn.Module, checkpoint: Source, *, caffe: bool | None = None, modulated: bool | None = None
) -> Migration:
    """Load a checkpoint of another library into a network, and make exactly the layers deformable that it deforms.

    The backbone of the checkpoint goes into a ResNet or ResNeXt of timm's; its names may be torchvision's,
    mmdetection's, mmsegmentation's, detectron2's or YOLACT++'s. Into any other network goes the whole checkpoint,
    by its own names. Weights keep their bits, and masks are a plain sigmoid (``mask_scale=1``), as in the sources.

    Args:
        model: A network with plain convolutions, or with the checkpoint's deformable layers. See ``replace_`` for
            networks with other libraries' layers.
        checkpoint: A file (.pth, .pkl, .safetensors), a state_dict, or what ``read`` returns.
        caffe: Whether the strides are in the 1x1 convolutions and images are BGR, which weights don't tell. None:
            as the config in the checkpoint says; without one, True for detectron2's ResNet-50, 101 and 152.
        modulated: Whether layers have masks (v2), for layers whose shapes allow both; else an error asks for it.

    Returns:
        What was loaded, renamed and left out; ``rest`` has the tensors of the neck and the heads.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint or holds code, or is of another architecture: a tensor is missing,
            has another shape, or is not the network's. The model then stays unchanged.
        TypeError: If the model is no network, or the checkpoint neither a path nor a dict.
    """
    check_network(model)
    checkpoint = read(checkpoint, modulated=modulated)
    found = _parts(model, checkpoint, caffe)
    fitted = fit(model, found.weights, found.layers, partial=found.partial)
    if found.caffe:
        to_caffe_(model)
    elif is_caffe(model):
        raise ValueError("the network is in caffe's style and the checkpoint is not; build it without _caffe")
    if fitted.convert:
        rebuild_(model, fitted.convert)
    model.load_state_dict(fitted.weights, strict=False)
    return _report(checkpoint, found, fitted)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Of a checkpoint: what goes into the network, by the network's names, and the rest."""

    weights: dict[str, Tensor]
    layers: dict[str, LayerArguments]
    names: dict[str, str]  # of the checkpoint's tensors, there and in the network
    partial: bool = False  # whether tensors that the network doesn't have are left out
    caffe: bool = False
    notes: tuple[str, ...] = ()


def _is_resnet(model: nn.Module) -> bool:
    """Tell whether a network is a ResNet by timm's names, or its features, and no more than that."""
    keys = model.state_dict().keys()
    roots = {key.partition(".")[0] for key in keys}
    return "layer1.0.conv1.weight" in keys and roots <= {"conv1", "bn1", *(f"layer{i}" for i in (1, 2, 3, 4)), "fc"}


def _parts(model: nn.Module, checkpoint: Checkpoint, caffe: bool | None) -> _Parts:
    if not _is_resnet(model):
        return _Parts(
            weights=checkpoint.weights,
            layers=checkpoint.layers,
            names={key: key for key in checkpoint.weights},
            partial=True,
        )
    backbone = find_backbone(checkpoint.weights, checkpoint.layers)
    notes = []
    if backbone.folded:
        notes.append(f"the biases of {', '.join(backbone.folded)} are in the running means of their BatchNorms")
    beside = {key for key in checkpoint.weights if key.startswith(backbone.prefix) and key not in backbone.names}
    if backbone.prefix and beside:
        notes.append(f"beside the ResNet the source has {', '.join(sorted(beside)[:3])}, which timm's does without")
    style = caffe
    if caffe is None:
        style, reason = backbone.is_caffe(checkpoint.config)
        notes.append(f"{'' if style else 'not '}caffe's style: {reason}")
    if style:
        notes.append(
            "strides are in the 1x1 convolutions; images are BGR from 0 to 255 minus (103.53, 116.28, 123.675), as "
            "model.pretrained_cfg says for a range from 0 to 1: flip RGB images by images.flip(1)"
        )
    return _Parts(
        weights=backbone.weights,
        layers=backbone.layers,
        names=backbone.names,
        caffe=bool(style),
        notes=tuple(notes),
    )


def _report(checkpoint: Checkpoint, found: _Parts, fitted: Fit) -> Migration:
    names = {key: name for key, name in found.names.items() if name in fitted.weights}
    sources = {own: source for source, own in checkpoint.renamed.items()}
    originals = {sources.get(key, key): name for key, name in names.items()}
    used = {*names, *(key for key, name in found.names.items() if name not in found.weights)}  # or folded
    return Migration(
        source=checkpoint.source,
        layers={name: layer for name, layer in found.layers.items() if f"{name}.offset_weight" in fitted.weights},
        loaded=tuple(fitted.weights),
        renamed={old: new for old, new in originals.items() if old != new},
        kept=fitted.kept,
        rest={key: value for key, value in checkpoint.weights.items() if key not in used},
        notes=found.notes,
    )
