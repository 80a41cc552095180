"""The tasks by name."""

from ..config.schema import Train
from ..data.loaders import Splits
from ..data.scenes import splits as scenes
from ..networks.detectors import DETECTORS
from .classification import Classification
from .detection import Detection
from .task import Task

_HEADS: dict[str, tuple[str | None, ...]] = {"classification": (None,), "detection": DETECTORS}


def check(config: Train) -> None:
    """Raise ``ValueError`` if the task, its head and its data don't fit together."""
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
    scenes.check_format(config.data, task, scenes.BOXES)
    if config.compile and task == "detection":
        raise ValueError("compile=true can't take detectors, whose boxes differ in number; drop it")
    if config.optim.layer_decay is not None:
        raise ValueError(
            f"only timm's networks number their layers, not those with a head: drop {config.optim.layer_decay=}"
        )


def create(config: Train, splits: Splits) -> Task:
    """Return the task of a config.

    Raises:
        ValueError: If the recipe has something that the task doesn't.
    """
    if config.task.name == "detection":
        return Detection(config, splits.classes or ())
    return Classification(config.optim, splits.num_classes)
