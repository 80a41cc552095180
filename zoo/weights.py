"""Weights of a plain network in a converted one."""

import logging
from collections import defaultdict
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def accept_plain_weights(model: nn.Module) -> None:
    """Have ``load_state_dict`` take a plain network's weights, and say whose offsets they leave alone."""
    model.register_load_state_dict_post_hook(_excuse_predictors)


def _excuse_predictors(model: nn.Module, incompatible: Any) -> None:
    missing = defaultdict(set)
    for key in incompatible.missing_keys:
        layer, _, name = key.rpartition(".")
        if name.startswith("offset_"):
            missing[layer].add(name)
    # All of a predictor: a part of it is an error.
    plain = [layer for layer, names in missing.items() if {"offset_weight", "offset_bias"} <= names]
    if plain:
        logger.warning("the weights are a plain network's: the offsets stay as they are in %s", ", ".join(plain))
        excused = {f"{layer}.{name}" for layer in plain for name in missing[layer]}
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in excused]
