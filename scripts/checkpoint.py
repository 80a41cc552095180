"""Checkpoints: safetensors whose header holds the recipe that rebuilds the model. No pickle."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo import DCNConfig, inject_

# JSON: {"create_model": kwargs of timm.create_model, "dcn": kwargs of DCNConfig or None, and optionally
# "pretrained_cfg": mean, std, input_size, interpolation and crop_pct of the images, and label_names}
Recipe = dict[str, Any]


def build(recipe: Recipe, **overrides: Any) -> nn.Module:
    """Create the network of a recipe, converted if it says so.

    Args:
        recipe: As ``save`` writes it.
        **overrides: Further arguments of ``timm.create_model``, such as ``pretrained=True``.
    """
    model = timm.create_model(**recipe["create_model"], **overrides)
    return model if recipe["dcn"] is None else inject_(model, DCNConfig(**recipe["dcn"]))


def save(model: nn.Module, recipe: Recipe, path: Path) -> None:
    """Write weights and recipe; a failure midway, such as a full disk, leaves an existing file whole."""
    save_weights(model.state_dict(), recipe, path)


def save_weights(state: dict[str, Tensor], recipe: Recipe, path: Path) -> None:
    """Write a state_dict and the recipe, as ``save`` does."""
    # Contiguous, and each tensor in memory of its own: what the format asks for.
    weights = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    atomically(path, lambda temporary: save_file(weights, temporary, metadata={"recipe": json.dumps(recipe)}))


def atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file by what ``write`` writes, once that is on the disk; until then the old one stays.

    Raises:
        Exception: What ``write`` raises, with a note that names the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        for name in (temporary, path.parent):
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if name == temporary:
                temporary.replace(path)
    except Exception as error:
        error.add_note(f"while writing {path}; what stood there before is whole")
        raise
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode.

    Its ``pretrained_cfg``, which ``timm.data.resolve_model_data_config`` reads, says how its images were normalised
    and resized in training, and ``label_names``, where they are known.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: For a safetensors file without recipe.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if "recipe" not in metadata:
            raise ValueError(f"{path} holds no recipe: expected a checkpoint of dcn-train, got {metadata=}")
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    recipe = json.loads(metadata["recipe"])
    model: Any = build(recipe)
    model.load_state_dict(state)
    if cfg := recipe.get("pretrained_cfg"):
        # JSON has no tuples, and timm means none but tuples by mean, std and input_size.
        cfg = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **cfg}
    return model.to(device).eval()
