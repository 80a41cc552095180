"""Checkpoints: safetensors whose header holds the recipe that rebuilds the model. No pickle."""

import dataclasses
import inspect
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

from . import weights
from .files import atomically

# JSON: {"create_model": kwargs of timm.create_model, "dcn": kwargs of DCNConfig or None, and optionally
# "pretrained_cfg": mean, std, input_size, interpolation and crop_pct of the images, and label_names}
Recipe = dict[str, Any]

_KEYS = {"create_model", "dcn", "pretrained_cfg"}
_CFG = {"mean", "std", "input_size", "interpolation", "crop_pct", "label_names"}
_DCN = {field.name for field in dataclasses.fields(DCNConfig)} - {"where"}
# Of create_model itself, which say what is loaded and how, and of zoo's "dcn", whose base is another name.
_LOADING = {*inspect.signature(timm.create_model).parameters, "base", "dcn", "deformable"} - {
    "model_name",
    "kwargs",
}


def check_recipe(recipe: Any) -> Recipe:
    """Return a recipe that says how to build a network of timm's registry, and nothing to load.

    Raises:
        ValueError: For any other, such as one that names a file, a folder or a repository.
    """
    if not isinstance(recipe, dict) or not {"create_model", "dcn"} <= set(recipe) <= _KEYS:
        raise ValueError(f"expected a recipe of {', '.join(sorted(_KEYS))}, got {str(recipe)[:200]}")
    arguments, dcn, cfg = (recipe.get(key) or {} for key in ("create_model", "dcn", "pretrained_cfg"))
    if not all(isinstance(part, dict) for part in (arguments, dcn, cfg)):
        raise ValueError(f"expected a recipe of three dicts, got {str(recipe)[:200]}")
    name = arguments.get("model_name")
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError(f"expected the name of a network in timm's registry, got model_name={name!r}")
    if loading := sorted(key for key in arguments if key in _LOADING or key.startswith("pretrained")):
        named = ", ".join(f"{key}={arguments[key]!r}" for key in loading)
        raise ValueError(f"a recipe builds a network and loads nothing, got {named}")
    if unknown := [*sorted(set(dcn) - _DCN), *sorted(set(cfg) - _CFG)]:
        raise ValueError(
            f"expected of dcn {', '.join(sorted(_DCN))} and of pretrained_cfg {', '.join(sorted(_CFG))}, "
            f"got {', '.join(unknown)}"
        )
    return recipe


def build(recipe: Recipe, *, pretrained: bool = False, start: Path | None = None) -> nn.Module:
    """Create the network of a recipe, converted if it says so.

    Args:
        recipe: As ``save`` writes it.
        pretrained: Load timm's weights, before the conversion.
        start: A file of weights to start from, a plain network's or a converted one's.

    Raises:
        FileNotFoundError: For a file of weights that is not there.
        ValueError: For a recipe that ``check_recipe`` refuses or timm can't build, and for other weights.
    """
    arguments = check_recipe(recipe)["create_model"]
    state = None if start is None else weights.read(start)
    try:
        model: nn.Module = timm.create_model(**arguments, pretrained=pretrained)
    except (TypeError, AssertionError, RuntimeError) as error:  # what constructors and timm's loader raise
        raise ValueError(f"timm can't build this network, {arguments}, {pretrained=}: {error}") from error
    if state is not None and not weights.converted(state):
        weights.load_into(model, state, str(start))
    if recipe["dcn"] is not None:
        inject_(model, DCNConfig(**recipe["dcn"]))
    if state is not None and weights.converted(state):
        weights.load_into(model, state, str(start))
    return model


def save(model: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write weights and recipe; a failure midway, such as a full disk, leaves an existing file whole."""
    save_weights(model.state_dict(), recipe, path)


def save_weights(state: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Write a state_dict and the recipe, as ``save`` does."""
    # Contiguous, and each tensor in memory of its own: what the format asks for.
    copies = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    atomically(path, lambda temporary: save_file(copies, temporary, metadata={"recipe": json.dumps(recipe)}))


def read_recipe(path: Path | str) -> Recipe:
    """Return the recipe of a checkpoint.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: For a damaged file, and one without a recipe or with one that ``check_recipe`` refuses.
    """
    with _opened(path) as file:
        return _recipe_of(file, path)


def load(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode.

    Its ``pretrained_cfg``, which ``timm.data.resolve_model_data_config`` reads, says how its images were normalised
    and resized in training, and ``label_names``, where they are known. The header chooses nothing to load: it may
    name networks of timm's registry and their arguments alone.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: As ``read_recipe``, and for weights that are not those of the recipe.
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
        # JSON has no tuples, and timm means none but tuples by mean, std and input_size.
        cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **cfg}
    return model.to(device).eval()


@contextmanager
def _opened(path: Path | str, device: str = "cpu") -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, IsADirectoryError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _recipe_of(file: Any, path: Path | str) -> Recipe:
    metadata = file.metadata() or {}
    if "recipe" not in metadata:
        raise ValueError(f"{path} holds no recipe: expected a checkpoint of dcn-train, got {metadata=}")
    try:
        return check_recipe(json.loads(metadata["recipe"]))
    except ValueError as error:
        raise ValueError(f"{path} has a recipe that is refused: {error}") from error
