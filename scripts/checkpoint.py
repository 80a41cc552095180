"""Checkpoints: safetensors whose header holds the recipe that rebuilds the model. No pickle."""

import json
import os
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from zoo import DCNConfig, inject_

Recipe = dict[str, Any]  # JSON: {"create_model": kwargs of timm.create_model, "dcn": kwargs of DCNConfig or None}


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
    # Contiguous, and each tensor in memory of its own: what the format asks for.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    try:
        save_file(state, temporary, metadata={"recipe": json.dumps(recipe)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        error.add_note(f"while writing {path}; what stood there before is whole")
        raise
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuild the network of a checkpoint, in eval mode.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: For a safetensors file without recipe.
    """
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata() or {}
        if "recipe" not in metadata:
            raise ValueError(f"{path} holds no recipe: expected a checkpoint of dcn-train, got {metadata=}")
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    model = build(json.loads(metadata["recipe"]))
    model.load_state_dict(state)
    return model.to(device).eval()
