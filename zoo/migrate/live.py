"""``replace_``: other libraries' deformable layers in a network become this library's. None of them is imported."""

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from dcn_ops import DeformConv2d
from dcn_ops.arguments import as_pair
from zoo.check import check_network
from zoo.migrate.keys import channels_of
from zoo.migrate.layers import DeformConv2dBeside, DeformConv2dNormed

logger = logging.getLogger(__name__)

# torchvision and mmcv; detectron2, BasicSR and old mmdetection; the DCNv2 forks.
_CLASSES = {
    *("DeformConv2d", "DeformConv2dPack", "ModulatedDeformConv2d", "ModulatedDeformConv2dPack"),
    *("DeformConv", "DeformConvPack", "ModulatedDeformConv", "ModulatedDeformConvPack"),
    *("DCNv2", "DCN"),
}
# BasicSR's and EDVR's, whose offsets come from another feature: layer(x, feature).
_BESIDE = {"DCNv2Pack", "DCN_sep"}
_PREDICTORS = ("conv_offset_mask", "conv_offset")
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """What ``replace_`` did.

    Attributes:
        replaced: The layers that are this library's now, by name, with their classes before.
        left: Layers that stay as they are, by name, with the reason.
        renamed: Keys of the network's state_dict before, and what they are called now.
    """

    replaced: dict[str, str]
    left: dict[str, str]
    renamed: dict[str, str]


def replace_(model: nn.Module) -> Replaced:
    """Put this library's layers in the place of those of torchvision, mmcv, detectron2, BasicSR and DCNv2 forks.

    They are known by class name and attributes. Each new layer holds the same Parameter objects, hooks and mode,
    and is called as before; outputs are equal to rounding. Optimizers of the network stay valid. The predictors'
    tensors have new names in the state_dict: load old checkpoints before, or by ``zoo.migrate.load_``.

    Args:
        model: A network that contains such layers.

    Raises:
        ValueError: If there is no such layer, or none can be replaced. The model then stays unchanged.
        TypeError: If the model is no network.
    """
    check_network(model)
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if _known(module) is not None:
            names[module].append(name)
    if model in names:
        raise ValueError(f"expected a network that contains deformable layers, got the layer {model}")
    made = {module: _made(module) for module in names}
    left = {names[module][0]: reason for module, reason in made.items() if isinstance(reason, str)}
    layers = {module: layer for module, layer in made.items() if not isinstance(layer, str)}
    if not layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        classes = ", ".join(sorted(_CLASSES | _BESIDE))
        raise ValueError(why or f"{type(model).__name__} has no layer of the classes {classes}")
    renamed: dict[str, str] = {}
    for module, layer in layers.items():
        for name in names[module]:
            model.set_submodule(name, layer)
            old, _ = _predictor(module)
            parts = ("weight", "bias") if old else ()
            renamed |= {f"{name}.{old}.{part}": f"{name}.offset_{part}" for part in parts}
        logger.debug("%s: %s -> %s", " = ".join(names[module]), type(module).__name__, layer)
    return Replaced(
        replaced={names[module][0]: type(module).__name__ for module in layers}, left=left, renamed=renamed
    )


def _known(module: nn.Module) -> str | None:
    """Return the name of the class, or of the base class, that is a deformable layer of another library's."""
    if isinstance(module, DeformConv2d):
        return None
    return next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _CLASSES | _BESIDE), None)


def _predictor(module: nn.Module) -> tuple[str, Any]:
    children = dict(module.named_children())
    return next(((name, children[name]) for name in _PREDICTORS if name in children), ("", None))


def _made(module: Any) -> DeformConv2d | str:
    """Return the layer for a module, or why there is none."""
    name = _known(module)
    base: Any = next(cls for cls in type(module).__mro__ if cls.__name__ == name)
    if type(module).forward is not base.forward or "forward" in vars(module):
        return (
            f"{type(module).__name__} has a forward of its own; give it the functions or classes of "
            "dcn_ops.compat.mmcv or dcn_ops.compat.detectron2 instead of theirs"
        )
    if any(not hasattr(module, number) for number in ("in_channels", "out_channels", *_GEOMETRY)):
        return f"{type(module).__name__} has not the attributes of a convolution"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed (parametrized, pruned or weight_norm)"
    called, predictor = _predictor(module)
    if others := {child for child, _ in module.named_children()} - {called, "norm", "activation"}:
        return (
            f"{type(module).__name__} also has {', '.join(sorted(others))}, which are in no layer of the libraries"
        )
    if predictor is None:
        return _taken_over(module, False, 1, False)
    reason = _why_not(module, called, predictor)
    if reason is not None:
        return reason
    modulated = called == "conv_offset_mask" or "Modulated" in str(name) or name in _BESIDE
    groups = predictor.out_channels // channels_of(modulated, predictor.kernel_size)
    if predictor.out_channels != groups * channels_of(modulated, predictor.kernel_size):
        return f"its {called} has {predictor.out_channels} channels, which fit no number of offset groups"
    return _taken_over(module, modulated, groups, name in _BESIDE)


def _why_not(module: Any, called: str, predictor: Any) -> str | None:
    if not isinstance(predictor, nn.Conv2d) or predictor.groups != 1:
        return f"its {called} is {type(predictor).__name__}, not one convolution"
    if predictor._forward_hooks or predictor._forward_pre_hooks or predictor.bias is None:
        return f"its {called} has hooks, or no bias"
    for number in _GEOMETRY:
        own, theirs = (as_pair(number, getattr(which, number)) for which in (module, predictor))
        if own != theirs:
            return f"its {called} has {number}={tuple(theirs)}, the layer itself {tuple(own)}"
    return None


def _taken_over(module: Any, modulated: bool, offset_groups: int, beside: bool) -> DeformConv2d:
    norm, activation = getattr(module, "norm", None), getattr(module, "activation", None)
    followed = norm is not None or activation is not None
    _, predictor = _predictor(module)
    cls = DeformConv2dBeside if beside else DeformConv2dNormed if followed else DeformConv2d
    bias = module._parameters.get("bias")
    shape: Any = {number: tuple(as_pair(number, getattr(module, number))) for number in _GEOMETRY}
    layer = cls(
        module.in_channels,
        module.out_channels,
        **shape,
        groups=getattr(module, "groups", 1),
        bias=bias is not None,
        offset_groups=offset_groups,
        modulated=modulated,
        predict_offsets=predictor is not None,
        mask_scale=1.0,
        device="meta",
    )
    layer.weight, layer.bias = module.weight, bias
    if predictor is not None:
        layer.offset_weight, layer.offset_bias = predictor.weight, predictor.bias
    if isinstance(layer, DeformConv2dNormed):
        layer.norm, layer.activation = norm, activation
    # The same dicts of hooks, so that handles still remove them.
    kept = {key: value for key, value in vars(module).items() if "_hook" in key}
    layer.__dict__ |= {**kept, "training": module.training}
    return layer
