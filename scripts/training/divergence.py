"""Errors and warnings of a diverging training: losses and weights that are not finite, and far offsets."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config.schema import Train

_log = logging.getLogger(__name__)
FAR = 50.0  # pixels; trained layers stay far below, and detectron2's users report divergence above it


def check_losses(losses: Iterable[float], epoch: int, first: int, config: Train, state: Path) -> None:
    """Raise ``FloatingPointError`` if a loss of the steps from ``first`` on is not finite."""
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step}: {_mend(config, state)}"
            )


def check_weights(model: nn.Module, accelerator: Accelerator, where: str, config: Train, state: Path) -> None:
    """Raise ``FloatingPointError`` in every process if a weight is not finite; all processes call this."""
    parameters = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    broken = torch.stack([~p.detach().isfinite().all() for p in parameters]).any().float()
    if accelerator.reduce(broken, "sum").item():
        raise FloatingPointError(f"weights are not finite at {where}: {_mend(config, state)}")


def _mend(config: Train, state: Path) -> str:
    kept = f"the last good state is {state}" if state.exists() else "there is no state yet"
    return f"lower optim.lr={config.optim.lr}, or set optim.clip_grad, dcn.offset_bound or optim.offset_l2; {kept}"


def warn_far(names: Iterable[str], before: list[float], now: list[float], where: str, scale: float) -> None:
    """Warn when a layer's mean |offset| first exceeds ``FAR``."""
    for name, old, new in zip(names, before or [0.0] * len(now), now, strict=True):
        if new > FAR >= old:
            _log.warning(
                "%s: the mean |offset| of %s is %.0f pixels; set dcn.offset_bound or optim.offset_l2, "
                "or lower optim.offset_lr_scale=%g",
                *(where, name, new, scale),
            )


def still_layers(state: dict[str, Tensor]) -> list[str]:
    """Return the deformable layers whose offsets are zero for every image, as before a training."""
    layers = [key.removesuffix(".offset_weight") for key in state if key.endswith(".offset_weight")]
    return [
        name for name in layers if not (state[f"{name}.offset_weight"].any() or state[f"{name}.offset_bias"].any())
    ]
