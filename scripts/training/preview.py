"""dcn-train dry_run=true: a preview of the data before any training."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..config.schema import Train
from ..data.images import Images, count_classes
from ..data.loaders import Splits
from ..data.scenes import census
from ..data.scenes.dataset import Objects, Scenes, scenes_of
from ..inspect import gallery
from ..tasks.drawing import legend
from ..tasks.task import Task

SHOWN = 32


def show(splits: Splits, task: Task, config: Train, folder: Path) -> None:
    """Decode every image, count images or objects of each class, and draw images of a training batch.

    Raises:
        ValueError: If an image can't be decoded.
    """
    for loader in (splits.train, splits.evaluate):
        inner: Any = getattr(loader.dataset, "dataset", None)
        if isinstance(inner, Images | Scenes):
            for index in track(range(len(inner)), f"decoding {len(inner)} images", transient=True):
                inner.decode(index)
    boxes = isinstance(scenes_of(splits.train.dataset), Objects)
    table = _objects_of_each_class(splits, config) if boxes else _images_of_each_class(splits, config)
    console = Console()
    console.print(table)
    steps = len(splits.train)
    console.print(f"{steps} steps of {config.data.batch_size} images an epoch, {config.optim.epochs} epochs")
    path = folder / "augmented.png"
    draw(splits, task, path)
    console.print(f"augmented training images: {path}")


def draw(splits: Splits, task: Task, path: Path) -> None:
    """Draw the first images of the first training batch with their targets, as the network gets them."""
    images, targets = next(iter(splits.train))
    pictures = gallery.as_bytes(images[:SHOWN], splits.transform)
    drawn = [task.picture(*pair, splits.classes or ()) for pair in zip(pictures, targets, strict=False)]
    columns, side = (4, 3.0) if scenes_of(splits.train.dataset) else (8, 1.5)
    names = legend(splits.classes or ()) if scenes_of(splits.train.dataset) else ()
    gallery.draw([drawn[i : i + columns] for i in range(0, len(drawn), columns)], path, side, names)


def _images_of_each_class(splits: Splits, config: Train) -> Table:
    table = Table(title=f"{config.data.name or config.data.root}: {splits.num_classes} classes")
    for column in ("class", "train", "evaluate"):
        table.add_column(column, justify="left" if column == "class" else "right")
    counts = [count_classes(loader.dataset) for loader in (splits.train, splits.evaluate)]
    for index in range(splits.num_classes):
        name = splits.classes[index] if splits.classes else str(index)
        table.add_row(name, *("unknown" if count is None else f"{count[index]:,}" for count in counts))
    return table


def _objects_of_each_class(splits: Splits, config: Train) -> Table:
    held = [scenes for loader in (splits.train, splits.evaluate) if (scenes := scenes_of(loader.dataset))]
    sizes = " and ".join(f"{len(scenes):,}" for scenes in held)
    title = f"{config.data.root or config.data.name}: objects in {sizes} images"
    table = Table(title=f"{title}, by their size at {config.data.img_size} pixels")
    table.add_column("class", no_wrap=True)  # so that the counts' titles wrap instead
    for name in (f"{split} {size}" for split in ("train", "eval") for size in census.SIZES):
        table.add_column(name, justify="right")
    counts = [census.count(scenes, config.data.img_size) for scenes in held]
    for index, name in enumerate(splits.classes or ()):
        table.add_row(name, *(f"{found[index, size]:,}" for found in counts for size in census.SIZES))
    return table
