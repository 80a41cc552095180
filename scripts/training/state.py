"""The training state of a run: everything that it needs to resume as if it had never stopped.

The learning rates, the order of the images and all random numbers are functions of the step
(``scripts/data/order.py``). So only the step has to be saved for scheduler, sampler and generators. Weights and the
optimizer's moments are stored by the parameters' names: a run may resume with another number of processes.
"""

import zipfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, recursively_apply
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ..storage.files import atomically

NAME = "state.pt"
_KEYS = {"position", "model", "optimizer", "ema", "scaler"}
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole(model: nn.Module) -> dict[str, Any]:
    """Return the state_dict on the CPU of a network that may be sharded; all processes call this."""
    return get_model_state_dict(model, options=_WHOLE)


@dataclass
class Position:
    """The progress of a training, and its values that are not part of the weights."""

    epoch: int = 0
    step: int = 0  # finished steps of this epoch
    steps: int = 0  # of an epoch
    loss: float = 0.0  # sum over the steps of this epoch
    offsets: list[float] = field(default_factory=list)  # mean |offset| of each layer in the last step, in pixels
    best: float = -1.0  # top-1 of best.safetensors


def save(
    path: Path,
    position: Position,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
) -> None:
    """Write the state; all processes call this, and the first one writes.

    Raises:
        OSError: If it can't be written; the previous state stays intact.
    """
    state: dict[str, Any] = {
        "position": asdict(position),
        "model": whole(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_WHOLE),
        "ema": None if ema is None else ema.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }
    if accelerator.is_main_process:
        atomically(path, lambda temporary: _write(state, temporary))
    accelerator.wait_for_everyone()


def _write(state: dict[str, Any], path: Path) -> None:
    # Through a Python file, whose errors say what is wrong with the disk.
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # the archive couldn't be closed after the error that stopped it
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _read(path: Path) -> dict[str, Any]:
    """Read a file that ``save`` wrote, and check its checksums, which torch itself ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise ValueError(f"the check sum of {part} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise anything
        raise ValueError(f"{path} is no training state of dcn-train, or a damaged one: {error}") from error
    parts = {key: state[key] for key in _KEYS if key in state} if isinstance(state, dict) else {}
    places = {f.name for f in fields(Position)}
    if set(parts) != _KEYS or not all(isinstance(parts[key], dict) for key in ("position", "model", "optimizer")):
        raise ValueError(f"{path} is no training state of dcn-train: expected a dict of {', '.join(sorted(_KEYS))}")
    if set(parts["position"]) != places:
        raise ValueError(f"{path} is the state of another version, with the position {parts['position']}")
    return parts


def load(
    path: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
) -> Position:
    """Restore what ``save`` wrote; the first process reads it and sends it to the others.

    Raises:
        ValueError: If the file is no training state, or belongs to another network or recipe.
    """
    state: dict[str, Any] = {}
    if accelerator.is_main_process:
        state = _read(path)
        if (state["ema"] is None) != (ema is None) or (state["scaler"] is None) != (accelerator.scaler is None):
            raise ValueError(f"optim.ema or precision differ from those of {path}; start anew, without resume")
        if accelerator.num_processes > 1:
            # The raw memory is sent, and the others read it as contiguous: channels_last would be scrambled.
            state = recursively_apply(Tensor.contiguous, state)
    common: list[dict[str, Any]] = [{key: state.get(key) for key in ("position", "scaler")}]
    broadcast_object_list(common)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=accelerator.num_processes > 1)
    try:
        set_model_state_dict(model, state.get("model", {}), options=options)
        set_optimizer_state_dict(model, optimizer, state.get("optimizer", {}), options=options)
        if ema is not None:
            set_model_state_dict(ema, state.get("ema", {}), options=options)
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is the state of another network or optimizer: {error}") from error
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(common[0]["scaler"])
    return Position(**common[0]["position"])
