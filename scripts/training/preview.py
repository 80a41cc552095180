"""dcn-train dry_run=true: a preview of the data before any training."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..config.schema import Train
from ..data.images import Images, count_classes
from ..data.loaders import Splits

SHOWN = 32


def show(splits: Splits, config: Train, folder: Path) -> None:
    """Decode every image, print the number of images per class, and draw some images of a training batch.

    Raises:
        ValueError: If an image can't be decoded.
    """
    table = Table(title=f"{config.data.name or config.data.root}: {splits.num_classes} classes")
    for column in ("class", "train", "evaluate"):
        table.add_column(column, justify="left" if column == "class" else "right")
    counts = []
    for loader in (splits.train, splits.evaluate):
        inner: Any = getattr(loader.dataset, "dataset", None)
        if isinstance(inner, Images):
            for index in track(range(len(inner)), f"decoding {len(inner)} images", transient=True):
                inner.decode(index)
        counts.append(count_classes(loader.dataset))
    for index in range(splits.num_classes):
        name = splits.classes[index] if splits.classes else str(index)
        table.add_row(name, *("unknown" if count is None else f"{count[index]:,}" for count in counts))
    console = Console()
    console.print(table)
    steps = len(splits.train)
    console.print(f"{steps} steps of {config.data.batch_size} images an epoch, {config.optim.epochs} epochs")
    path = folder / "augmented.png"
    draw(splits, path)
    console.print(f"augmented training images: {path}")


def draw(splits: Splits, path: Path) -> None:
    """Draw the first images of the first training batch with their classes, as the network gets them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images, labels = next(iter(splits.train))
    pictures = _denormalised(images[:SHOWN], splits.transform)
    rows = (len(pictures) + 7) // 8
    figure, axes = pyplot.subplots(rows, 8, figsize=(12, 1.7 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, label in zip(axes.flat, pictures, labels.tolist(), strict=False):
        axis.imshow(picture.numpy(), cmap="gray")
        axis.set_title(splits.classes[label] if splits.classes else str(label), fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _denormalised(images: Tensor, transform: dict[str, Any]) -> Tensor:
    """Convert images [N, C, H, W] of the network's input to [N, H, W] or [N, H, W, 3] in 0 to 1."""
    mean, std = (torch.tensor(transform[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    pictures = (images * std + mean).clamp(0, 1).movedim(1, -1)
    return pictures if pictures.shape[-1] == 3 else pictures.mean(-1)
