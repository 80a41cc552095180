"""The number that a search over configs maximises."""

import csv
from pathlib import Path

# What defines the best epoch, the first of these that a task logs.
_BEST = ("eval/mask/AP", "eval/AP", "eval/mIoU", "eval/top1")


def objective(folder: Path) -> float | None:
    """Return the best score of a run's deformable variant, or of the plain one if it is alone; None without one."""
    logs = [log for name in ("dcn", "plain") if (log := folder / name / "metrics.csv").is_file()]
    if not logs:
        return None  # a dry run, or one that went on in another folder
    with logs[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    name = next((name for name in _BEST if rows and name in rows[0]), None)
    return None if name is None else max(float(row[name]) for row in rows)
