"""CSV files that get rows in every epoch."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from .files import atomically


def append(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows to a CSV, whose first row names its columns."""
    with path.open("a", newline="") as file:
        for row in rows:
            writer = csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


def drop_from(path: Path, epoch: int) -> None:
    """Drop the rows of this epoch and later ones: a resumed run writes them again."""
    if path.exists():
        with path.open(newline="") as file:
            # A process that was killed while writing may have left half a row.
            rows = [row for row in csv.DictReader(file) if row["epoch"].isdecimal() and int(row["epoch"]) < epoch]
        atomically(path, lambda temporary: append(temporary, rows))
