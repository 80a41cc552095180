"""Loading a plain network's weights into a converted network."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from dcn_ops import DeformConv2d

logger = logging.getLogger(__name__)


def announce_plain_weights(model: nn.Module) -> None:
    """Make ``load_state_dict`` log the layers whose offsets a plain network's weights leave unchanged."""
    model.register_load_state_dict_pre_hook(_announce)


def _announce(model: nn.Module, weights: Mapping[str, Any], prefix: str, *_: Any) -> None:
    named = model.named_modules(prefix=prefix.rstrip("."), remove_duplicate=False)
    layers = [name for name, m in named if isinstance(m, DeformConv2d) and m.predictor_parameters()]
    offsets = {key for key in weights if "offset" in key}
    own = {key for key in offsets if key.rpartition(".")[0] in layers and ".offset_" in key}
    plain = [n for n in layers if f"{n}.weight" in weights and not any(key.startswith(f"{n}.") for key in own)]
    # Offsets with other names, such as mmcv's, don't belong to a plain network.
    if plain and own == offsets:
        logger.warning("the weights are a plain network's: the offsets stay as they are in %s", ", ".join(plain))
