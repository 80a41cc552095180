"""The conversion: ``plan`` shows what it would do, ``inject_`` does it."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from zoo.check import Size, check_configs, check_network, check_size
from zoo.choose import Choice, choose
from zoo.config import DCNConfig
from zoo.convert import LAYER_ARGUMENTS, LayerArguments, convert, parents
from zoo.forward import Measured
from zoo.fusing import keep_unfused
from zoo.layers import DEFORMABLE
from zoo.measure import measure
from zoo.mixers import MIXER_ARGUMENTS, REPLACED, MixerArguments, make
from zoo.parts import BACKBONE, PARTS, find_parts
from zoo.report import injection_table, show
from zoo.results import Injection
from zoo.swaps import build_layers, replacements
from zoo.weights import announce_plain_weights

logger = logging.getLogger(__name__)

_DEFAULT = DCNConfig()
_Model = TypeVar("_Model", bound=nn.Module)
_Configs = DCNConfig | Sequence[DCNConfig]


def plan(model: nn.Module, config: _Configs = _DEFAULT, *, input_size: Size | None = None) -> Injection:
    """Print and return what ``inject_`` would replace, with parameters and FLOPs; the model stays unchanged.

    Args:
        model: A plain network.
        config: What to replace; or several configs, of which a convolution takes the first that selects it.
        input_size: [C, H, W] of the image whose FLOPs are counted. By default it is timm's size for this
            architecture, which ignores your ``in_chans`` or ``img_size``.

    Raises:
        ValueError: As ``inject_``.
        TypeError: As ``inject_``.
    """
    parts = _parts(model)
    choice, measured = _choose(model, config, input_size, parts)
    seen = measured.seen
    injection = Injection(
        replacements=replacements(model, choice.sites, measured),
        params_before=sum(p.numel() for p in model.parameters()),
        flops_before=measured.flops,
        input_size=measured.size,
        seen_size=None if measured.size is None or seen == measured.size[1:] else seen,
        refused=choice.refused,
        params_by_part=_params_by_part(model, parts),
        flops_by_part=measured.flops_by_part,
    )
    show(injection_table(injection))
    return injection


def inject_(model: _Model, config: _Configs = _DEFAULT, *, input_size: Size | None = None) -> _Model:
    """Make convolutions of a network deformable, in place. Outputs stay the same until it is trained.

    Each layer holds the same Parameter objects, hooks and mode as its convolution, under the same names, and in
    addition zero-initialised ``offset_weight`` and ``offset_bias``. A convolution with several names becomes one
    layer. Load weights before or after, of a plain or a converted network; build optimizers after. A block that
    could fold its convolutions into one (RepVGG's ``reparameterize``, LeViT's ``fuse``) no longer folds if one of
    them is deformable, and warns.

    With ``operator="v3"`` or ``"v4"`` average poolings and depthwise convolutions become ``DCNv3`` or ``DCNv4``.
    Their parameters have other names and shapes, so load plain weights before.

    Args:
        model: A plain network.
        config: What to replace; or several configs, of which a convolution takes the first that selects it.
        input_size: [C, H, W] of its image; by default timm's for this architecture.

    Returns:
        The same model.

    Raises:
        ValueError: If the model is itself a convolution or already converted, if it has no such part or stage, if a
            pattern matches no module, if a config selects no convolution, or if offset_groups don't fit a
            convolution. The model then stays unchanged.
        TypeError: If an argument has another type.
    """
    choice, _ = _choose(model, config, input_size, _parts(model))
    _replace(model, {site.layer: layer for site, layer in build_layers(model, choice.sites)})
    return model


def rebuild_(model: nn.Module, layers: Mapping[str, LayerArguments | MixerArguments]) -> None:
    """Convert exactly the layers of these names, in place.

    Raises:
        ValueError: If a name is no convertible layer, or the arguments are not those of a layer. The model then
            stays unchanged.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[nn.Module, nn.Module] = {}
    like = next(model.parameters())
    for name, arguments in layers.items():
        old = modules.get(name)
        given: Any = arguments
        if isinstance(given, Mapping) and set(given) == set(MIXER_ARGUMENTS):
            if old is None or type(old) not in REPLACED or given["operator"] not in ("v3", "v4"):
                raise ValueError(
                    f"expected a convolution or pooling at {name!r} of {type(model).__name__}, got {old}"
                )
            made[old] = make(old, like=like, **given)
            continue
        # Folders of earlier versions have no mask_scale; it was 2.
        if not isinstance(given, Mapping) or {"mask_scale", *given} != set(LAYER_ARGUMENTS):
            raise ValueError(f"expected the arguments {', '.join(LAYER_ARGUMENTS)} of {name!r}, got {arguments!r}")
        if not isinstance(old, nn.Conv2d) or type(old) not in DEFORMABLE:
            raise ValueError(f"expected a convolution at {name!r} of {type(model).__name__}, got {old}")
        made[old] = convert(old, **given)
    _replace(model, made)


def _replace(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Put each layer in the place of the one that it replaces, under all of its names."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if module in layers:
            names[module].append(name)
    keep_unfused({model.get_submodule(parent) for of in names.values() for name in of for parent in parents(name)})
    for old, layer in layers.items():
        for name in names[old]:
            model.set_submodule(name, layer)
        logger.debug("%s: %s -> %s", " = ".join(names[old]), old, layer)
    logger.info("%s: %d layers became deformable", type(model).__name__, len(layers))
    announce_plain_weights(model)


def _parts(model: nn.Module) -> dict[str, str]:
    check_network(model)
    return find_parts(model)


def _choose(
    model: nn.Module, config: _Configs, input_size: Size | None, parts: Mapping[str, str]
) -> tuple[Choice, Measured]:
    configs = check_configs(config)
    measured = measure(model, _sizes(model, check_size(input_size), parts), parts)
    return choose(model, configs, parts, measured), measured


def _sizes(model: nn.Module, input_size: Size | None, parts: Mapping[str, str]) -> list[Size]:
    """Return the possible sizes of the image: the caller's, or else timm's."""
    if input_size is not None:
        return [input_size]
    networks = [model, *(model.get_submodule(name) for name, part in parts.items() if part == BACKBONE)]
    configs = [getattr(network, "pretrained_cfg", None) or {} for network in networks]
    size = next((cfg["input_size"] for cfg in configs if cfg.get("input_size")), None)
    if not size:
        return []
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), size[0])
    # timm.create_model(..., in_chans=1) keeps the 3 in its config.
    return [tuple(size)] if first == size[0] else [tuple(size), (first, *size[1:])]


def _params_by_part(model: nn.Module, parts: Mapping[str, str]) -> dict[str, int]:
    """Return the parameters of each part; a shared parameter counts for the first."""
    found = dict.fromkeys((part for part in PARTS if part in parts.values()), 0)
    for name, parameter in model.named_parameters():
        found[parts[name.rpartition(".")[0]]] += parameter.numel()
    return found
