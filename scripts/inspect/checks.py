"""The options of dcn-visualize, checked before its work."""

import difflib

import timm
from safetensors import SafetensorError, safe_open

from .. import devices
from ..config.ranges import check_least
from ..config.schema import Visualize
from ..storage.existing import existing
from .layers import deformable_layers

_PREDICTOR = ".offset_weight"  # of a layer, in a checkpoint


def check(config: Visualize) -> None:
    """Refuse options before there is work.

    Raises:
        FileNotFoundError: If a checkpoint doesn't exist.
        ValueError: If a number is out of range, there is no such device, or the layer is no deformable one.
    """
    check_least(config, {"levels": 1, "images": 1, "field_images": 1})
    if config.points is not None and (not config.points or not all(map(_is_place, config.points))):
        raise ValueError(f"expected points=[[y,x],...] with y and x in [0, 1], got points={config.points}")
    devices.chosen(config.device)
    if config.before is not None:
        existing(config.before, f"no checkpoint before={config.before}")
    if config.layer is not None:
        _check_layer(config.layer, config)


def _is_place(point: list[float]) -> bool:
    return len(point) == 2 and 0 <= min(point) <= max(point) <= 1


def _check_layer(layer: str, config: Visualize) -> None:
    network = config.checkpoint or config.name
    known = _layers(config)
    if known is None or layer in known:
        return
    if not known:
        raise ValueError(f"{network} has no deformable layer, got layer={layer}; drop it")
    close = difflib.get_close_matches(layer, known, n=1)
    mend = f"; did you mean layer={close[0]}?" if close else ""
    raise ValueError(f"{network} has the deformable layers {', '.join(known)}, got layer={layer}{mend}")


def _layers(config: Visualize) -> list[str] | None:
    """Return the names of the deformable layers; None if there is no network to read them from."""
    if config.checkpoint is not None:
        try:
            with safe_open(existing(config.checkpoint), framework="pt") as file:
                return [key.removesuffix(_PREDICTOR) for key in file.keys() if key.endswith(_PREDICTOR)]  # noqa: SIM118
        except SafetensorError:  # what reads the whole checkpoint says what is wrong with it
            return None
    if config.name is None or not timm.is_model(config.name):
        return None
    return list(deformable_layers(timm.create_model(config.name)))
