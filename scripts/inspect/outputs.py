"""Pictures of a network's outputs beside the truth."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..tasks.drawing import legend
from ..tasks.task import Task
from . import gallery

COMPARED = 4


@torch.inference_mode()
def compare(
    models: dict[str, nn.Module], batch: Any, transform: dict[str, Any], task: Task, names: Any, path: Path
) -> None:
    """Draw the first images of a batch with the truth and with the output of each network, a row each.

    Args:
        models: On the device of the batch.
        batch: Images [N, C, H, W], and their targets.
        transform: The normalisation of the images.
        task: Draws the answers.
        names: Names of the classes.
        path: The PNG.
    """
    images, targets = batch[0][:COMPARED], batch[1][:COMPARED]
    answers = {"truth": targets, **{name: model.eval()(images) for name, model in models.items()}}
    pictures, rows = gallery.as_bytes(images, transform), []
    for name, of in answers.items():
        drawn = [task.picture(*pair, names) for pair in zip(pictures, of, strict=False)]
        rows.append([(picture, f"{name}: {title}") for picture, title in drawn])
    gallery.draw(rows, path, side=3.5, legend=legend(names))
