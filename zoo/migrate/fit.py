"""Whether tensors fit a network, before anything is changed in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dcn_ops import DeformConv2d
from zoo.convert import LAYER_ARGUMENTS, LayerArguments
from zoo.layers import DEFORMABLE
from zoo.migrate.keys import channels_of

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is to be done.

    Attributes:
        weights: The tensors that the network takes.
        convert: The convolutions that become deformable.
        kept: The network's tensors that get no value.
    """

    weights: dict[str, Tensor]
    convert: dict[str, LayerArguments]
    kept: tuple[str, ...]


def fit(
    model: nn.Module, weights: Mapping[str, Tensor], layers: Mapping[str, LayerArguments], partial: bool
) -> Fit:
    """Return what loading tensors by the network's names would do.

    Args:
        model: The network.
        weights: Tensors.
        layers: The layers that are to be deformable.
        partial: Whether tensors that the network doesn't have are left out, and not refused.

    Raises:
        ValueError: If a tensor is missing, has another shape or is not the network's, or a layer can't become
            deformable.
    """
    convert = _to_convert(model, layers)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for name in convert:
        shapes |= _predictor(name, shapes[f"{name}.weight"], model.get_submodule(name), layers[name])
    head = tuple(f"{name}." for name in _classifiers(model))
    taken = {key: value for key, value in weights.items() if key in shapes}
    taken = {
        key: value for key, value in taken.items() if not (key.startswith(head) and value.shape != shapes[key])
    }
    own = {name for name, _ in model.named_children()}
    foreign = [
        key for key in weights if key not in shapes and key.partition(".")[0] in own and not key.startswith(head)
    ]
    # BatchNorms count their batches from 0 where the source didn't.
    missing = [key for key in shapes if key not in taken and not key.endswith("num_batches_tracked")]
    other = [
        f"{key} {list(value.shape)}, not {list(shapes[key])}"
        for key, value in taken.items()
        if value.shape != shapes[key]
    ]
    kept = [key for key in missing if key.startswith(head)]
    _refuse(model, "not in the checkpoint", [key for key in missing if key not in kept])
    _refuse(model, "of other shapes in the checkpoint", other)
    if not partial:
        _refuse(model, "in the checkpoint, but not in the network", foreign)
    return Fit(weights=taken, convert=convert, kept=tuple(kept))


def _to_convert(model: nn.Module, layers: Mapping[str, LayerArguments]) -> dict[str, LayerArguments]:
    modules = dict(model.named_modules())
    convert = {}
    for name, wanted in layers.items():
        module = modules.get(name)
        if isinstance(module, DeformConv2d):
            differ = {key: getattr(module, key) for key in LAYER_ARGUMENTS if getattr(module, key) != wanted[key]}  # type: ignore[literal-required]
            if differ:
                raise ValueError(
                    f"{name} is deformable in another way than in the checkpoint: {differ}, not {wanted}"
                )
        elif type(module) in DEFORMABLE:
            convert[name] = wanted
        elif module is not None:
            raise ValueError(
                f"expected a convolution at {name!r} of {type(model).__name__}, which the checkpoint deforms, got "
                f"{type(module).__name__}; call zoo.migrate.replace_(model) first if it is another library's layer"
            )
    for name, module in modules.items():
        if isinstance(module, DeformConv2d) and module.predict_offsets and name not in layers:
            raise ValueError(
                f"{name} is deformable in the network, but not in the checkpoint; pass a plain network"
            )
    return convert


def _predictor(name: str, filters: tuple[int, ...], conv: nn.Module, arguments: LayerArguments) -> _Shapes:
    outputs = arguments["offset_groups"] * channels_of(arguments["modulated"], filters[2:])
    return {
        f"{name}.offset_weight": (outputs, int(conv.in_channels), *filters[2:]),  # type: ignore[arg-type]
        f"{name}.offset_bias": (outputs,),
    }


def _classifiers(model: nn.Module) -> list[str]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _refuse(model: nn.Module, what: str, keys: list[str]) -> None:
    if keys:
        raise ValueError(
            f"the checkpoint is of another architecture than this {type(model).__name__}: {len(keys)} tensors are "
            f"{what}, such as {', '.join(keys[:3])}; zoo.migrate.build(checkpoint) builds a ResNet that fits"
        )
