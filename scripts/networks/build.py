"""Build the network of a recipe."""

import inspect
from pathlib import Path
from typing import Any

import timm

from . import detectors, segmenters
from .backbone import create_body
from .download import downloading

HEADS = (*detectors.DETECTORS, *segmenters.SEGMENTERS)
# Arguments of create_model that choose what is loaded and how, and of zoo's "dcn", whose base is another name.
LOADING = {*inspect.signature(timm.create_model).parameters, "base", "dcn", "deformable"} - {"model_name", "kwargs"}
_KEYS = {"name", "channels", "kwargs"}
_CURES = "model.checkpoint_path=FILE (weights on this machine) or model.pretrained=false (random weights)"


def check_head(head: Any) -> None:
    """Raise ``ValueError`` unless the head of a recipe is None, or names a head with its width and arguments."""
    if head is None:
        return
    if not isinstance(head, dict) or set(head) != _KEYS or head["name"] not in HEADS:
        raise ValueError(f"expected a head of {', '.join(HEADS)} with {', '.join(sorted(_KEYS))}, got {head!r}")
    if loading := sorted(filter(_loads, head["kwargs"])):
        raise ValueError(f"a head loads nothing, got {', '.join(loading)} in its kwargs")


def _loads(key: str) -> bool:
    """Tell whether an argument of timm, torchvision or segmentation_models_pytorch may choose what is loaded."""
    return key in LOADING or key.startswith(("pretrained", "weights", "encoder"))


def create(
    arguments: dict[str, Any], head: dict[str, Any] | None, *, pretrained: bool = False, body: Path | None = None
) -> Any:
    """Create a plain network.

    Args:
        arguments: Of ``timm.create_model``.
        head: Name, channels and kwargs of a head; None for timm's own classifier.
        pretrained: Load timm's weights.
        body: A file of weights of the plain timm network under a head.

    Raises:
        ConnectionError: If timm's weights can't be downloaded.
        ValueError: If a library can't build it.
    """
    try:
        with downloading(arguments["model_name"], _CURES):
            if head is None:
                return timm.create_model(**arguments, pretrained=pretrained)
            return _with_head(arguments, head, pretrained, body)
    except (TypeError, AssertionError, RuntimeError) as error:  # what constructors and timm's loader raise
        made = f"{arguments}, {pretrained=}" if head is None else f"{arguments}, {head}, {pretrained=}"
        raise ValueError(f"timm can't build this network, {made}: {error}") from error


def _with_head(arguments: dict[str, Any], head: dict[str, Any], pretrained: bool, body: Path | None) -> Any:
    name, channels, kwargs = head["name"], head["channels"], head["kwargs"]
    model: Any
    if name in segmenters.SEGMENTERS:
        model = segmenters.create(name, arguments, channels, kwargs, pretrained, body)
        classifiers: tuple[str, ...] = (segmenters.CLASSIFIER,)
    else:
        backbone = create_body(arguments, pretrained, body)
        model = detectors.create(name, backbone, arguments["num_classes"], channels, kwargs)
        classifiers = detectors.CLASSIFIERS[name]
    # No ``pretrained_cfg``: zoo would take the whole for a network of timm.
    model.num_classes, model.classifiers = arguments["num_classes"], classifiers
    return model
