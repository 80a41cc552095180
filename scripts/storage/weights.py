"""Initial weights of a training: a file of timm or torchvision, or a checkpoint of dcn-train."""

import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from .existing import existing

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".ckpt")
_log = logging.getLogger(__name__)

# Of DeformConv2d, and of DCNv4 and DCNv3 in the place of other layers.
_PREDICTORS = ("offset_weight", ".layer.offset_mask.weight", ".layer.offset.weight")


def read(path: Path) -> dict[str, Tensor]:
    """Return the weights of a safetensors file, or of a ``torch.save`` file that holds only tensors.

    Raises:
        FileNotFoundError: If the file doesn't exist.
        ValueError: If the file can't be read.
    """
    existing(str(path), f"expected a file of weights, got model.checkpoint_path={path}", SUFFIXES)
    try:
        state: Any = load_state_dict(str(path), weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"model.checkpoint_path={path} is damaged or no safetensors file: {error}") from error
    except Exception as error:  # torch may raise anything if a file is no archive or holds more than tensors
        raise ValueError(f"model.checkpoint_path={path} holds more than weights, or is damaged: {error}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"expected a state_dict in model.checkpoint_path={path}, got {list(state)[:5]}")
    return state


def converted(state: dict[str, Tensor]) -> bool:
    """Tell whether weights belong to a network with deformable layers."""
    return any(key.endswith(_PREDICTORS) for key in state)


def has_head(state: dict[str, Tensor]) -> bool:
    """Tell whether weights belong to a detector or segmenter, not to a timm network."""
    return any(key.startswith(("backbone.", "encoder.")) for key in state)


def load_into(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load all weights except a classifier's for other classes, which starts anew as with timm's own weights.

    Raises:
        ValueError: If the weights belong to another network.
    """
    own, heads = model.state_dict(), _classifiers(model)
    anew = {head for head in heads if _shape(state, head) != _shape(own, head)}
    kept = {key: value for key, value in state.items() if key.rpartition(".")[0] not in anew}
    cure = "set model.name, model.kwargs and dcn as in its training, and variants=[dcn] if it is converted"
    if other := [key for key, value in kept.items() if key in own and value.shape != own[key].shape]:
        first = f"{other[0]} is {list(kept[other[0]].shape)} instead of {list(own[other[0]].shape)}"
        more = f", and {len(other) - 1} more have another shape" if other[1:] else ""
        raise ValueError(f"model.checkpoint_path={origin} is of another network: {first}{more}; {cure}")
    try:
        result = model.load_state_dict(kept, strict=False)
    except RuntimeError as error:  # of a module that loads in its own way
        raise ValueError(f"model.checkpoint_path={origin} is of another network: {error}; {cure}") from error
    missing = [key for key in result.missing_keys if key.rpartition(".")[0] not in anew]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"model.checkpoint_path={origin} is of another network, or of one with another conversion: "
            f"it lacks {_some(missing)}, and has the unexpected {_some(result.unexpected_keys)}; {cure}"
        )
    if anew:
        _log.info("%s: the classifier has other classes, so it starts anew: %s", origin, ", ".join(sorted(anew)))


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    names: Any = getattr(model, "classifiers", None) or cfg.get("classifier") or ()  # of a head, of timm
    return (names,) if isinstance(names, str) else tuple(names)


def _shape(state: dict[str, Tensor], layer: str) -> tuple[int, ...] | None:
    weight = state.get(f"{layer}.weight")
    return None if weight is None else tuple(weight.shape)


def _some(keys: list[str]) -> str:
    others = [f"{len(keys) - 3} others"] if len(keys) > 3 else []
    return ", ".join([*keys[:3], *others]) or "nothing"
