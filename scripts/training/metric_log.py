"""What a training writes once an epoch: a row of ``metrics.csv``, and TensorBoard events."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from ..storage.files import atomically

Metrics = dict[str, float]


class MetricLog:
    """Writes into one folder.

    Args:
        folder: Receives ``metrics.csv`` and events.
        epoch: The first that will be written; what the folder has of it and later ones is dropped.
        quiet: Write nothing, in all processes but the first.
    """

    def __init__(self, folder: Path, epoch: int, quiet: bool = False) -> None:
        self.path, self.quiet = folder / "metrics.csv", quiet
        if quiet:
            return
        self.board = SummaryWriter(folder, purge_step=epoch)
        drop_from(self.path, epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.quiet:
            self.board.close()

    def write(self, epoch: int, metrics: Metrics, details: Metrics) -> None:
        """Append a row; ``details`` go to TensorBoard alone."""
        if self.quiet:
            return
        append(self.path, [{"epoch": epoch, **metrics}])
        for key, value in {**metrics, **details}.items():
            self.board.add_scalar(key, value, epoch)
        self.board.flush()


def append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a CSV, whose first row names its columns."""
    with path.open("a", newline="") as file:
        for row in rows:
            writer = csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


def drop_from(path: Path, epoch: int) -> None:
    """Drop the rows of this epoch and later ones: a run that goes on comes by an epoch twice."""
    if path.exists():
        with path.open(newline="") as file:
            # Of a process that was killed while it wrote a row, half of it may be there.
            rows = [row for row in csv.DictReader(file) if row["epoch"].isdecimal() and int(row["epoch"]) < epoch]
        atomically(path, lambda temporary: append(temporary, rows))
