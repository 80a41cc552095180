"""The metrics of each epoch: a row of ``metrics.csv``, and records of accelerate's trackers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from omegaconf import OmegaConf

from ..config.schema import Train
from ..storage.csv_log import append, drop_from
from ..tasks.task import Metrics

PROJECT = "dcn-zoo"  # for trackers that have projects instead of folders


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``ValueError`` if accelerate doesn't know a tracker, or the tracker's package is not installed."""
    if unknown := [name for name in names if name not in LOGGER_TYPE_TO_CLASS]:
        raise ValueError(f"expected trackers among {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}, got {unknown[0]!r}")
    there = {str(tracker) for tracker in get_available_trackers()}
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"trackers={list(names)}: {missing[0]} is not installed; pip install {missing[0]}")


class MetricLog:
    """Writes into one folder.

    The CSV file is our own, because a resumed run has to remove the epochs that it repeats.

    Args:
        folder: The variant's folder; receives ``metrics.csv`` and the events of TensorBoard.
        epoch: The first epoch that will be written; rows of it and later epochs are removed.
        config: The run's config: its ``trackers``, and what they record of it.
        quiet: Write nothing, in all processes except the first.
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
        """Append a row; ``details`` go only to the trackers."""
        if self.quiet:
            return
        append(self.path, [{"epoch": epoch, **metrics}])
        for tracker in self.trackers.values():
            tracker.log({**metrics, **details}, step=epoch)


def _tracker(name: str, folder: Path, epoch: int, config: Train) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":  # it joins both names, and shows a run for each folder
        tracker = kind(folder.name, folder.parent, purge_step=epoch)
    elif kind.requires_logging_directory:
        tracker = kind(PROJECT, folder)
    else:
        tracker = kind(PROJECT)
    if hasattr(tracker, "start"):  # in accelerate since 1.11; earlier trackers start by themselves
        tracker.start()
    if name != "tensorboard":  # for it, accelerate would make another folder named by the time
        values = OmegaConf.to_container(OmegaConf.structured(config))
        tracker.store_init_configuration({"run": str(folder), **_flat(values)})
    return tracker


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values if isinstance(values, str | int | float | None) else str(values)}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
