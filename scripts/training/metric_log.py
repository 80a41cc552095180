"""What a training writes once an epoch: a row of ``metrics.csv``, and what the trackers of accelerate keep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from omegaconf import OmegaConf

from ..config.schema import Train
from ..storage.csv_log import append, drop_from
from ..tasks.task import Metrics

PROJECT = "dcn-zoo"  # of trackers that keep projects, not folders


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``ValueError`` for a tracker that accelerate doesn't know, or whose package is not installed."""
    if unknown := [name for name in names if name not in LOGGER_TYPE_TO_CLASS]:
        raise ValueError(f"expected trackers among {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, got {unknown[0]!r}")
    there = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"trackers={list(names)}: {missing[0]} is not installed; pip install {missing[0]}")


class MetricLog:
    """Writes into one folder.

    The CSV is our own: of a run that goes on it loses the epochs that come again.

    Args:
        folder: Of one variant; receives ``metrics.csv`` and the events of TensorBoard.
        epoch: The first that will be written; what the folder has of it and later ones is dropped.
        config: Of the run: its ``trackers``, and what they keep of it.
        quiet: Write nothing, in all processes but the first.
    """

    def __init__(self, folder: Path, epoch: int, config: Train, quiet: bool = False) -> None:
        self.path, self.quiet = folder / "metrics.csv", quiet
        self.trackers = {} if quiet else {name: _tracker(name, folder, epoch, config) for name in config.trackers}
        if not quiet:
            drop_from(self.path, epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.trackers.values():
            tracker.finish()

    @property
    def board(self) -> Any:
        """TensorBoard's ``SummaryWriter``, or None without that tracker."""
        return self.trackers["tensorboard"].tracker if "tensorboard" in self.trackers else None

    def write(self, epoch: int, metrics: Metrics, details: Metrics) -> None:
        """Append a row; ``details`` go to the trackers alone."""
        if self.quiet:
            return
        append(self.path, [{"epoch": epoch, **metrics}])
        for tracker in self.trackers.values():
            tracker.log({**metrics, **details}, step=epoch)


def _tracker(name: str, folder: Path, epoch: int, config: Train) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":  # which joins both names, and shows a run for each folder
        tracker = kind(folder.name, folder.parent, purge_step=epoch)
    elif kind.requires_logging_directory:
        tracker = kind(PROJECT, folder)
    else:
        tracker = kind(PROJECT)
    if hasattr(tracker, "start"):  # of accelerate since 1.11; before, it starts by itself
        tracker.start()
    if name != "tensorboard":  # for which accelerate makes one more folder of the hour
        values = OmegaConf.to_container(OmegaConf.structured(config))
        tracker.store_init_configuration({"run": str(folder), **_flat(values)})
    return tracker


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values if isinstance(values, str | int | float | None) else str(values)}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
