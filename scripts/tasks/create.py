"""The tasks by name."""

from typing import Any

from ..config.schema import Head, Train
from ..data.loaders import Splits
from ..data.scenes import splits as scenes
from ..networks.detectors import DETECTORS
from ..networks.segmenters import SEGMENTERS
from .classification import Classification
from .detection import SHOWN_SCORE, Detection
from .segmentation import Segmentation
from .task import Task

_HEADS: dict[str, tuple[str | None, ...]] = {
    "classification": (None,),
    "detection": DETECTORS,
    "segmentation": SEGMENTERS,
}


def check(config: Train) -> None:
    """Raise ``ValueError`` if the task, its head, its data and the recipe don't fit together."""
    task, head = config.task.name, config.head.name
    if task not in _HEADS:
        raise ValueError(f"expected a task of {', '.join(_HEADS)}, got task.name={task}")
    if head not in _HEADS[task]:
        known = ", ".join(str(name) for name in _HEADS[task])
        raise ValueError(f"task={task} has the heads {known}, got head.name={head}")
    if task == "classification":
        if config.data.name in scenes.FORMATS:
            raise ValueError(f"data={config.data.name} has boxes or masks: add task=detection or task=segmentation")
        return
    scenes.check_format(config.data, task, scenes.BOXES if task == "detection" else scenes.PIXELS)
    optim = config.optim
    if optim.mixup or optim.cutmix:
        raise ValueError(f"mixup and cutmix are for classification; drop {optim.mixup=}, {optim.cutmix=}")
    if optim.layer_decay is not None:
        raise ValueError(
            f"only timm's networks number their layers, not those with a head: drop {optim.layer_decay=}"
        )
    if task == "detection" and optim.label_smoothing:
        raise ValueError(f"detectors have no label smoothing; drop {optim.label_smoothing=}")
    if task == "detection" and config.compile:
        raise ValueError("compile=true can't take detectors, whose boxes differ in number; drop it")


def create(config: Train, splits: Splits) -> Task:
    """Return the task of a config."""
    if config.task.name == "detection":
        return Detection(config.head, splits.classes or ())
    if config.task.name == "segmentation":
        return Segmentation(config.head, splits.classes or (), config.optim.label_smoothing)
    return Classification(config.optim, splits.num_classes)


def of_recipe(recipe: dict[str, Any], score: float = SHOWN_SCORE) -> Detection | Segmentation | None:
    """Return the task of a checkpoint that has a head; None for a classifier.

    Args:
        recipe: Of the checkpoint.
        score: Of a detector's boxes that count for F1 and the confusion.
    """
    if (found := recipe.get("head")) is None:
        return None
    head = Head(name=found["name"], channels=found["channels"], kwargs=found["kwargs"])
    number = recipe["create_model"].get("num_classes", 0)
    names = (recipe.get("pretrained_cfg") or {}).get("label_names") or [str(i) for i in range(number)]
    return Detection(head, names, score) if head.name in DETECTORS else Segmentation(head, names)
