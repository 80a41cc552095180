"""The results of dcn-evaluate: numbers, tables and files."""

import csv
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import figures


@dataclass(kw_only=True)
class Result:
    """The measurements of one checkpoint; accuracies in percent."""

    checkpoint: str
    parameters: int
    top1: float
    top5: float
    classes: tuple[str, ...] | None  # names of rows and columns, if the checkpoint has them
    confusion: list[list[int]]  # rows: the class of the image, columns: the predicted class
    images_per_second: float = 0.0
    corruptions: dict[str, list[float]] = field(default_factory=dict)  # top-1 by severity


def write(results: dict[str, Result], provenance: dict[str, Any], batch: int, folder: Path) -> None:
    """Write ``results.json``, and the confusion matrix of each network as CSV and picture."""
    report = {
        **provenance,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "networks": {name: asdict(result) for name, result in results.items()},
    }
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, result in results.items():
        stem = f"confusion-{name.strip('/').replace('/', '-')}"
        with (folder / f"{stem}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(result.confusion)
        figures.confusion(
            torch.tensor(result.confusion),
            f"{name}: top-1 {result.top1:.2f} %",
            folder / f"{stem}.png",
            result.classes,
        )
    print(f"written: {folder / 'results.json'}, confusion matrices as CSV and PNG next to it")


def show(results: dict[str, Result], data: str, severities: list[int], batch: int) -> None:
    """Print the tables."""
    console = Console(width=120)
    count = sum(map(sum, next(iter(results.values())).confusion))
    table = Table(title=f"{count:,} images of {data}")
    columns = ("network", "top-1 %", "top-5 %", "worst class %", "parameters", f"images/s (batch {batch})")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for name, result in results.items():
        worst, recall = worst_class(result.confusion)
        named = result.classes[worst] if result.classes else worst
        numbers = f"{result.top1:.2f}", f"{result.top5:.2f}", f"{recall:.1f} (class {named})"
        table.add_row(name, *numbers, f"{result.parameters:,}", f"{result.images_per_second:.0f}")
    console.print(table)
    names = next(iter(results.values())).corruptions
    if not names:
        return
    table = Table(title=f"top-1 % under corruption, mean over severities {severities}")
    table.add_column("corruption")
    for name in results:
        table.add_column(name, justify="right")
    mean = {name: [statistics.mean(r.corruptions[c]) for c in names] for name, r in results.items()}
    for i, corruption in enumerate(names):
        table.add_row(corruption, *(f"{values[i]:.1f}" for values in mean.values()))
    table.add_section()
    table.add_row("mean", *(f"{statistics.mean(values):.1f}" for values in mean.values()))
    console.print(table)


def worst_class(confusion: list[list[int]]) -> tuple[int, float]:
    """Return the class with the smallest recall among those that occur, and the recall in percent."""
    recalls = {i: 100 * row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)}
    return min(recalls.items(), key=lambda item: item[1])
