"""The contents of a saved network's config.json, and its weights, which config.json can't choose."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import PretrainedCfg, adapt_input_conv, build_model_with_cfg
from torch import Tensor

WEIGHTS, CONFIG = "model.safetensors", "config.json"
# Parameters of timm's builders are no arguments of a network, except these.
_BUILDERS = (timm.create_model, build_model_with_cfg)
LOADING = {name for builder in _BUILDERS for name in inspect.signature(builder).parameters}
LOADING -= {"scriptable", "exportable", "no_jit", "kwargs"}
# The keys that tell timm where to read weights, and how.
_SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
_FIELDS = {field.name for field in fields(PretrainedCfg)} - _SOURCES


def check_base(base: object, arguments: Iterable[str]) -> None:
    """Refuse a name that timm's registry doesn't have, and arguments that choose what its loaders read.

    Raises:
        ValueError: If the name or one of the arguments is refused.
    """
    if not isinstance(base, str) or not timm.is_model(base):
        raise ValueError(
            f"expected the name of an architecture of timm's, such as 'resnet50', got {base=}; "
            "convert other networks with zoo.inject_"
        )
    # timm's create_model passes these two to every architecture.
    refused = (LOADING - {"pretrained_cfg_overlay", "cache_dir"}) & set(arguments)
    if refused:
        raise ValueError(f"{sorted(refused)} choose what is loaded and are no arguments of {base}; remove them")


def is_saved(cfg: Mapping[str, Any]) -> bool:
    """Tell whether a pretrained_cfg comes from a folder or a hub repository."""
    return cfg.get("source") in ("local-dir", "hf-hub")


def data_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pretrained_cfg, perhaps from JSON, says of images and layers, without the weights' source."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in cfg.items() if key in _FIELDS}


def load_weights(model: Any, cfg: Mapping[str, Any], cache_dir: str | Path | None = None) -> None:
    """Load the safetensors of a folder or a hub repository into a network, whose head and input may differ.

    Raises:
        FileNotFoundError: If a folder has no safetensors.
        ValueError: If the weights are damaged or don't fit the network, or their input can't be adapted.
    """
    weights, ours = _read(cfg, cache_dir), model.state_dict()
    for name in _names(cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in weights and key in ours and weights[key].shape != ours[key].shape:
            weights[key] = _adapted(key, weights[key], ours[key].shape, model.in_chans, cfg)
    head = (
        tuple(f"{name}." for name in _names(cfg.get("classifier")))
        if model.num_classes != cfg["num_classes"]
        else ()
    )
    try:
        missing, unexpected = model.load_state_dict(
            {key: weight for key, weight in weights.items() if not key.startswith(head)}, strict=False
        )
    except RuntimeError as error:  # other shapes
        raise ValueError(f"the weights are not those of the {CONFIG} next to them: {error}") from error
    wrong = [*(key for key in missing if not key.startswith(head)), *unexpected]
    if wrong:
        some = ", ".join(wrong[:4])
        raise ValueError(
            f"the weights are not those of the {CONFIG} next to them: {len(wrong)} differ, such as {some}"
        )


def _adapted(key: str, weight: Tensor, shape: Any, in_chans: int, cfg: Mapping[str, Any]) -> Tensor:
    try:
        adapted = adapt_input_conv(in_chans, weight)
    except NotImplementedError:
        adapted = weight
    if adapted.shape != shape:
        raise ValueError(
            f"expected in_chans={cfg['input_size'][0]} as saved, got {in_chans=}, to which {key} of shape "
            f"{list(weight.shape)} can't be adapted"
        )
    return adapted


def _read(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> dict[str, Tensor]:
    if cfg["source"] == "hf-hub":
        repository, _, revision = cfg["hf_hub_id"].partition("@")
        path = Path(hf_hub_download(repository, WEIGHTS, revision=revision or None, cache_dir=cache_dir))
    else:
        path = Path(cfg["file"], WEIGHTS)
    if not path.is_file():
        raise FileNotFoundError(f"expected a folder with {CONFIG} and {WEIGHTS}, got {str(path.parent)!r}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; copy or download it again") from error


def _names(names: str | Iterable[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
