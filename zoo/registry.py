"""Converted networks by name, ``timm.create_model("resnet50_dcn", pretrained=True)``, and in a folder."""

import fnmatch
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from timm.models import load_pretrained, register_model, save_for_hf
from torch import nn

from dcn_ops import DeformConv2d
from zoo.check import check_network
from zoo.config import DCNConfig
from zoo.convert import LAYER_ARGUMENTS, LayerArguments
from zoo.inject import inject_, rebuild_
from zoo.presets import PRESETS

_SUFFIX = "_dcn"
# Not "layers", which is an argument of timm's ResNets.
_NOT_SAVED = {"num_classes", "in_chans", "global_pool", "img_size", "base", "dcn", "deformable"}


def list_models(filter: str = "*") -> list[str]:
    """Return the names of the registered presets, for ``timm.create_model``, that match a glob."""
    return sorted(name for name in (base + _SUFFIX for base in PRESETS) if fnmatch.fnmatchcase(name, filter))


def save(model: nn.Module, folder: str | Path) -> None:
    """Write weights (safetensors) and config.json of a converted timm network, in the shape of a hub repository.

    ``zoo.load(folder)`` rebuilds it, and so does ``timm.create_model("local-dir:" + folder, pretrained=True)``
    after ``import zoo``, or "hf-hub:" once the folder is uploaded.

    Raises:
        ValueError: For a network that timm.create_model didn't build or cut (features_only), or that has no
            deformable layer.
    """
    check_network(model)
    base = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not base or not hasattr(model, "num_classes"):
        raise ValueError(f"expected a whole network of timm.create_model, got {type(model).__name__}")
    layers = {
        name: {argument: getattr(layer, argument) for argument in LAYER_ARGUMENTS}
        for name, layer in model.named_modules()
        if isinstance(layer, DeformConv2d)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no deformable layer; convert it with zoo.inject_ first")
    timm_model: Any = model
    recorded = getattr(model, "_model_args", {})
    try:
        # What timm reads off the network itself may have changed since, and ``deformable`` says what was converted.
        timm_model._model_args = {k: v for k, v in recorded.items() if k not in _NOT_SAVED}
        save_for_hf(
            model,
            str(folder),
            model_config={"architecture": "dcn"},
            model_args={**timm_model._model_args, "base": base, "deformable": layers},
            safe_serialization=True,
        )
    finally:
        timm_model._model_args = recorded


def load(folder: str | Path, **kwargs: Any) -> nn.Module:
    """Return the network that ``save`` wrote.

    Args:
        folder: What ``save`` wrote, or a clone of a hub repository.
        **kwargs: As of ``timm.create_model``, such as ``num_classes``.

    Raises:
        FileNotFoundError: If there is no config.json.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"expected a folder with config.json and model.safetensors, got {str(folder)!r}")
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


@register_model
def dcn(
    pretrained: bool = False,
    *,
    base: str,
    dcn: DCNConfig | dict[str, Any] | None = None,
    deformable: dict[str, LayerArguments] | None = None,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Build any timm network, converted.

    Args:
        pretrained: Whether to load weights: the plain network's before the conversion or, where
            ``pretrained_cfg`` is that of a saved network, the converted one's after it.
        base: Its name in timm.
        dcn: What to convert; by default the preset of the base, or ``DCNConfig()``.
        deformable: The very layers instead, by name, with their arguments.
        pretrained_cfg: As of ``timm.create_model``.
        **kwargs: As of ``timm.create_model``.
    """
    kwargs.pop("pretrained_model_args", None)
    if dcn is not None and deformable is not None:
        raise ValueError(f"a saved network has its layers, but got {dcn=}; build it with timm.create_model(base)")
    model: Any
    if not pretrained or pretrained_cfg is None or isinstance(pretrained_cfg, str):
        model = timm.create_model(base, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
        return _converted(model, base, dcn, deformable)
    # Weights of a converted network, from a folder or a hub.
    if kwargs.get("features_only"):
        raise ValueError("a saved network loads whole, without features_only; it has forward_intermediates")
    cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else asdict(pretrained_cfg)
    cfg = {name: tuple(value) if isinstance(value, list) else value for name, value in cfg.items()}  # of JSON
    model = timm.create_model(base, pretrained_cfg={**cfg, "architecture": base}, **kwargs)
    _converted(model, base, dcn, deformable)
    load_pretrained(model, cfg, model.num_classes, kwargs.get("in_chans", 3))
    return model


def _converted(
    model: nn.Module,
    base: str,
    dcn: DCNConfig | dict[str, Any] | None,
    deformable: dict[str, LayerArguments] | None,
) -> nn.Module:
    if deformable is not None:
        rebuild_(model, deformable)
        return model
    config = dcn if dcn is not None else PRESETS.get(base.partition(".")[0], DCNConfig())
    return inject_(model, config if isinstance(config, DCNConfig) else DCNConfig(**config))


def _register_preset(base: str) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return dcn(pretrained, base=base, **kwargs)

    build.__name__ = base + _SUFFIX
    build.__doc__ = f"{base} with deformable convolutions, as ``zoo.presets`` has it."
    register_model(build)


for _base in PRESETS:
    _register_preset(_base)
