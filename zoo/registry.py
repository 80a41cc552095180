"""Converted networks by name, ``timm.create_model("resnet50_dcn", pretrained=True)``, and in a folder."""

import fnmatch
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
from timm.models import load_pretrained, register_model, save_for_hf
from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig
from zoo.convert import LAYER_ARGUMENTS, LayerArguments, rebuild_
from zoo.inject import inject_
from zoo.presets import PRESETS

_SUFFIX = "_dcn"


def list_models(filter: str = "*") -> list[str]:
    """Return the names of the registered presets, for ``timm.create_model``, that match a glob."""
    return sorted(name for name in (base + _SUFFIX for base in PRESETS) if fnmatch.fnmatchcase(name, filter))


def save(model: nn.Module, folder: str | Path) -> None:
    """Write weights (safetensors) and config.json of a converted timm network, in the shape of a hub repository.

    ``zoo.load(folder)`` rebuilds it, and so does ``timm.create_model("local-dir:" + folder, pretrained=True)``
    after ``import zoo``, or "hf-hub:" once the folder is uploaded.

    Raises:
        ValueError: For a network that timm.create_model didn't build, or that has no deformable layer.
    """
    base = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not base:
        raise ValueError(
            f"expected a network of timm.create_model, got {type(model).__name__} without pretrained_cfg"
        )
    layers = {
        name: {argument: getattr(layer, argument) for argument in LAYER_ARGUMENTS}
        for name, layer in model.named_modules()
        if isinstance(layer, DeformConv2d)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no deformable layer; convert it with zoo.inject_ first")
    arguments = {k: v for k, v in getattr(model, "_model_args", {}).items() if k not in ("dcn", "base")}
    save_for_hf(
        model,
        str(folder),
        model_config={"architecture": "dcn"},
        model_args={**arguments, "base": base.removesuffix(_SUFFIX), "layers": layers},
        safe_serialization=True,
    )


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
    layers: dict[str, LayerArguments] | None = None,
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Build any timm network, converted.

    Args:
        pretrained: Whether to load weights: the plain network's before the conversion or, where
            ``pretrained_cfg`` is that of a saved network, the converted one's after it.
        base: Its name in timm.
        dcn: What to convert; by default the preset of the base, or ``DCNConfig()``.
        layers: The very layers instead, by name, with their arguments.
        pretrained_cfg: As of ``timm.create_model``.
        **kwargs: As of ``timm.create_model``.
    """
    saved = pretrained and pretrained_cfg is not None and not isinstance(pretrained_cfg, str)
    kwargs.pop("pretrained_model_args", None)
    model: Any
    if saved:
        model = timm.create_model(base, pretrained=False, **kwargs)
    else:
        model = timm.create_model(base, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    if layers is not None:
        rebuild_(model, layers)
    else:
        config = dcn if dcn is not None else PRESETS.get(base.partition(".")[0], DCNConfig())
        inject_(model, config if isinstance(config, DCNConfig) else DCNConfig(**config))
    if saved:
        cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else asdict(pretrained_cfg)
        load_pretrained(model, cfg, model.num_classes, kwargs.get("in_chans", 3))
    return model


def _register_preset(base: str) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return dcn(pretrained, base=base, **kwargs)

    build.__name__ = base + _SUFFIX
    build.__doc__ = f"{base} with deformable convolutions, as ``zoo.presets`` has it."
    register_model(build)


for _base in PRESETS:
    _register_preset(_base)
