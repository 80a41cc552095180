"""Networks with a head: their metrics on the evaluation split, and pictures of their outputs beside the truth."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from ..tasks.task import Metrics, Task
from . import gallery
from .subject import Subject

COMPARED = 4


@torch.inference_mode()
def measure(model: nn.Module, subject: Subject, task: Task, device: torch.device) -> Metrics:
    """Return a task's metrics over the subject's evaluation split."""
    found = task.evaluation(device)
    for images, targets in track(subject.loader, description="evaluation", transient=True):
        output = model(images.to(device))
        moved = targets.to(device) if isinstance(targets, torch.Tensor) else targets
        found.update(output, moved)
    return found.compute()


def show(metrics: dict[str, Metrics], speed: dict[str, float], data: str) -> None:
    """Print the metrics of each network in a column."""
    table = Table(title=f"{data}, in percent")
    table.add_column("metric")
    for name in metrics:
        table.add_column(name, justify="right")
    for key in next(iter(metrics.values())):
        values = (of[key] for of in metrics.values())
        table.add_row(key, *("–" if math.isnan(value) else f"{value:.2f}" for value in values))
    table.add_section()
    table.add_row("images/s", *(f"{value:.1f}" for value in speed.values()))
    Console(width=120).print(table)


def write(metrics: dict[str, Metrics], speed: dict[str, float], provenance: dict[str, Any], path: Path) -> None:
    """Write the metrics as JSON; null where there is nothing to find."""
    networks = {
        name: {key: None if math.isnan(value) else value for key, value in of.items()}
        | {"images_per_second": speed[name]}
        for name, of in metrics.items()
    }
    path.write_text(json.dumps({**provenance, "networks": networks}, indent=1) + "\n")
    print(f"written: {path}")


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
    gallery.draw(rows, path, side=3.5)
