"""Checkpoints: safetensors files whose header holds the recipe that rebuilds the model. No pickle."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo import DCNConfig, inject_

from ..networks.build import LOADING, check_head, create
from . import weights
from .files import atomically

# JSON: "create_model" has the kwargs of timm.create_model, "dcn" those of DCNConfig or None. Optionally, "head" has
# name, channels and kwargs of the detector or segmenter around the network, and "pretrained_cfg" mean, std,
# input_size, interpolation and crop_pct of the images, and label_names.
Recipe = dict[str, Any]

_KEYS = {"create_model", "head", "dcn", "pretrained_cfg"}
_CFG = {"mean", "std", "input_size", "interpolation", "crop_pct", "label_names"}
_DCN = {field.name for field in dataclasses.fields(DCNConfig)} - {"where"}


def check_recipe(recipe: Any) -> Recipe:
    """Return a recipe that only builds a network of timm's registry and loads nothing.

    Raises:
        ValueError: If it doesn't, for instance because it names a file, a folder or a repository.
    """
    if not isinstance(recipe, dict) or not {"create_model", "dcn"} <= set(recipe) <= _KEYS:
        raise ValueError(f"expected a recipe of {', '.join(sorted(_KEYS))}, got {str(recipe)[:200]}")
    arguments, dcn, cfg = (recipe.get(key) or {} for key in ("create_model", "dcn", "pretrained_cfg"))
    if not all(isinstance(part, dict) for part in (arguments, dcn, cfg)):
        raise ValueError(f"expected a recipe of three dicts, got {str(recipe)[:200]}")
    check_head(recipe.get("head"))
    name = arguments.get("model_name")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"expected the name of a network in timm's registry, got model_name={name!r}")
    if loading := sorted(key for key in arguments if key in LOADING or key.startswith("pretrained")):
        named = ", ".join(f"{key}={arguments[key]!r}" for key in loading)
        raise ValueError(f"a recipe builds a network and loads nothing, got {named}")
    if unknown := [*sorted(set(dcn) - _DCN), *sorted(set(cfg) - _CFG)]:
        raise ValueError(
            f"expected of dcn {', '.join(sorted(_DCN))} and of pretrained_cfg {', '.join(sorted(_CFG))}, "
            f"got {', '.join(unknown)}"
        )
    return recipe


def build(recipe: Recipe, *, pretrained: bool = False, start: Path | None = None) -> nn.Module:
    """Create the network of a recipe, converted if the recipe says so.

    Args:
        recipe: As written by ``save``.
        pretrained: Load timm's weights, before the conversion; not with ``start``.
        start: A file of initial weights, of a plain or a converted network. With a head: of the whole, or of only
            the plain timm network in it.

    Raises:
        FileNotFoundError: If the file of weights doesn't exist.
        ValueError: If ``check_recipe`` refuses the recipe, timm can't build it, or the weights don't fit.
    """
    arguments, head = check_recipe(recipe)["create_model"], recipe.get("head")
    state = None if start is None else weights.read(start)
    body = None if state is None or head is None or weights.has_head(state) else start
    # A file replaces timm's weights, which then need no download.
    model: nn.Module = create(arguments, head, pretrained=pretrained and start is None, body=body)
    if body is not None:
        state = None
    if state is not None and not weights.converted(state):
        weights.load_into(model, state, str(start))
    if recipe["dcn"] is not None:
        size = None if head is None else (recipe.get("pretrained_cfg") or {}).get("input_size")
        inject_(model, DCNConfig(**recipe["dcn"]), input_size=None if size is None else tuple(size))
    if state is not None and weights.converted(state):
        weights.load_into(model, state, str(start))
    return model


def save(model: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write weights and recipe. A failure midway, such as a full disk, leaves an existing file intact."""
    save_weights(model.state_dict(), recipe, path)


def save_weights(state: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Write a state_dict and the recipe, as ``save`` does."""
    # The format requires contiguous tensors, each in its own memory.
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    atomically(path, lambda temporary: save_file(copies, temporary, metadata={"recipe": json.dumps(recipe)}))


def read_recipe(path: Path | str) -> Recipe:
    """Return the recipe of a checkpoint.

    Raises:
        FileNotFoundError: If the file doesn't exist.
        ValueError: If the file is damaged, has no recipe, or ``check_recipe`` refuses the recipe.
    """
    with _opened(path) as file:
        return _recipe_of(file, path)


def load(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode.

    Its ``pretrained_cfg``, which ``timm.data.resolve_model_data_config`` reads, has the normalisation and resizing
    of the images in training, and ``label_names`` if they are known. The header can't choose a file to load: it may
    only name networks of timm's registry and their arguments.

    Raises:
        FileNotFoundError: If the file doesn't exist.
        ValueError: As in ``read_recipe``, or if the weights don't fit the recipe.
    """
    with _opened(path, str(device)) as file:
        recipe = _recipe_of(file, path)
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    model: Any = build(recipe)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights are not those of its recipe: {error}") from error
    if cfg := recipe.get("pretrained_cfg"):
        # JSON has no tuples, but timm expects tuples for mean, std and input_size.
        cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
        model.pretrained_cfg = model.default_cfg = {**getattr(model, "pretrained_cfg", {}), **cfg}
    return model.to(device).eval()


@contextmanager
def _opened(path: Path | str, device: str = "cpu") -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, IsADirectoryError) as error:
        if Path(path).is_dir() or Path(path).suffix in (".pt", ".pth"):
            kind = "folder" if Path(path).is_dir() else "file of torch.save"
            raise ValueError(f"{path} is a {kind}; take last.safetensors of a run") from error
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); copy it again, or take last.safetensors of a run"
        ) from error


def _recipe_of(file: Any, path: Path | str) -> Recipe:
    metadata = file.metadata() or {}
    if "recipe" not in metadata:
        raise ValueError(f"{path} holds no recipe: expected a checkpoint of dcn-train, got {metadata=}")
    try:
        return check_recipe(json.loads(metadata["recipe"]))
    except ValueError as error:
        raise ValueError(f"{path} has a recipe that is refused: {error}") from error
