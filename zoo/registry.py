"""Converted networks by name: ``timm.create_model("resnet50_dcn", pretrained=True)``."""

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn

from dcn_ops.messages import shown
from zoo.config import DCNConfig
from zoo.convert import LayerArguments
from zoo.inject import inject_, rebuild_
from zoo.presets import PRESETS
from zoo.pretrained import check_base, data_config, is_saved, load_weights

_SUFFIX = "_dcn"


def list_models(filter: str = "*") -> list[str]:
    """Return the names of the registered presets, for ``timm.create_model``, that match a glob.

    Raises:
        TypeError: If the filter is no string.
    """
    if not isinstance(filter, str):
        raise TypeError(f'expected a glob such as "resnet*" for filter, got {shown(filter)}')
    return sorted(name for name in (base + _SUFFIX for base in PRESETS) if fnmatch.fnmatchcase(name, filter))


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
        pretrained: Whether to load weights: the plain network's before the conversion, or, if ``pretrained_cfg`` is
            a saved network's, the converted network's after it.
        base: The timm name of the plain network.
        dcn: What to convert; by default the preset of the base, or ``DCNConfig()``.
        deformable: Instead of ``dcn``: exactly these layers, by name, with their arguments.
        pretrained_cfg: As in ``timm.create_model``.
        **kwargs: As in ``timm.create_model``.
    """
    kwargs.pop("pretrained_model_args", None)
    check_base(base, kwargs)
    if dcn is not None and deformable is not None:
        raise ValueError(f"a saved network has its layers, but got {dcn=}; build it with timm.create_model(base)")
    if pretrained_cfg is None or isinstance(pretrained_cfg, str):
        plain = timm.create_model(base, pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
        return _converted(plain, base, dcn, deformable, kwargs)
    # The config of a converted network, in a folder or a hub.
    if kwargs.get("features_only"):
        raise ValueError("a saved network loads whole, without features_only; it has forward_intermediates")
    cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else asdict(pretrained_cfg)
    model: Any = timm.create_model(base, pretrained_cfg={**data_config(cfg), "architecture": base}, **kwargs)
    _converted(model, base, dcn, deformable, kwargs)
    if pretrained and is_saved(cfg):
        load_weights(model, cfg, kwargs.get("cache_dir"))
    elif pretrained:
        load_pretrained(model, cfg, model.num_classes, kwargs.get("in_chans", 3))
    return model


def _converted(
    model: Any,
    base: str,
    dcn: DCNConfig | dict[str, Any] | None,
    deformable: dict[str, LayerArguments] | None,
    arguments: dict[str, Any],
) -> nn.Module:
    # As timm's create_model records them, from 1.0.31 on.
    model._model_args = {key: value for key, value in arguments.items() if value is not None}
    if deformable is not None:
        rebuild_(model, deformable)
        return model
    config = dcn if dcn is not None else PRESETS.get(base.partition(".")[0], DCNConfig())
    if not isinstance(config, DCNConfig | Mapping):
        raise TypeError(f"expected a DCNConfig, or a dict of its fields, got {dcn=}")
    return inject_(model, config if isinstance(config, DCNConfig) else DCNConfig(**config))


def _register_preset(base: str) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return dcn(pretrained, base=base, **kwargs)

    build.__name__ = base + _SUFFIX
    build.__doc__ = f"{base} with deformable convolutions, as in ``zoo.presets``."
    register_model(build)


for _base in PRESETS:
    _register_preset(_base)
