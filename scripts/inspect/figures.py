"""The pictures of dcn-visualize; every function writes one PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..storage.files import uninterrupted
from . import gallery
from .cascade import SamplingLocations
from .offset_statistics import LayerOffsets

DPI = 160
_SIDE = 1.9  # inches of a panel of ``sampling``


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    with uninterrupted():
        figure.savefig(path, dpi=DPI)
    pyplot().close(figure)


def sampling(
    images: Tensor, transform: dict[str, Any], rows: list[SamplingLocations], path: Path, layer: str | None = None
) -> None:
    """Draw figure 6 of the DCNv1 paper: chosen outputs (crosses) with all samples that reach them.

    There is one row per output, one column per image. A sample's opacity is the product of the masks on its path.

    Args:
        images: As the network reads them, [N, C, H, W].
        transform: ``mean`` and ``std`` of their normalisation.
        rows: For each output, its samples in each image.
        path: The PNG.
        layer: The layer whose outputs these are, if it is one for all rows.
    """
    plt = pyplot()
    pictures = gallery.as_bytes(images, transform).movedim(1, -1).numpy()
    height, width = images.shape[-2:]
    figure, axes = plt.subplots(
        len(rows), len(images), figsize=(_SIDE * len(images), (_SIDE + 0.05) * len(rows)), squeeze=False
    )
    for row, locations in zip(axes, rows, strict=True):
        masks, count = locations.masks, locations.masks.shape[1]
        opacity = (masks / masks.amax(1, keepdim=True).clamp(min=1e-6)).cpu().numpy()
        points = locations.points.cpu().numpy()
        size = _dot(points, 1.25 * width)
        columns = (pictures, points, opacity, locations.outputs.tolist())
        for axis, picture, where, weight, (y, x) in zip(row, *columns, strict=True):
            axis.imshow(picture, interpolation="nearest")
            colours = np.zeros((count, 4))
            colours[:, :3], colours[:, 3] = (1.0, 0.85, 0.0), 0.2 + 0.7 * weight
            edges = colours * (0.0, 0.0, 0.0, 1.0)  # black, so that dots stand out on images of every colour
            axis.scatter(where[:, 1], where[:, 0], s=size**2, c=colours, edgecolors=edges, linewidths=size / 9)
            for colour, wide in (("black", 2.6), ("lime", 1.3)):
                axis.scatter([x], [y], s=150, c=colour, marker=_cross(), linewidths=wide)
            # Samples outside the image read zeros; those close to it are shown.
            margin_y, margin_x = height / 8, width / 8
            axis.set(xlim=(-margin_x, width + margin_x), ylim=(height + margin_y, -margin_y), xticks=[], yticks=[])
            axis.set_facecolor("0.25")
        if locations.label:
            row[0].set_ylabel(locations.label, fontsize=7)
    caption = (
        f"cross: output{f' of {layer}' if layer else ''}   dots: its samples, pale if their mask is small\n"
        "grey: outside, read as 0; samples farther out are not drawn"
    )
    figure.supxlabel(caption, fontsize=8)
    figure.tight_layout(pad=0.3, rect=(0, 0.1 / figure.get_figheight(), 1, 1))
    _save(figure, path)


def _cross() -> Any:
    """Return a cross that is open in the middle, so that it doesn't hide a small grid of dots."""
    from matplotlib.path import Path as Outline

    arms = [(side * x, side * y) for x, y in ((1, 0), (0, 1)) for side in (1, -1)]
    ends = [(reach * x, reach * y) for x, y in arms for reach in (0.4, 1.0)]
    return Outline(ends, [Outline.MOVETO, Outline.LINETO] * len(arms))


def _dot(points: np.ndarray, width: float) -> float:
    """Return the diameter of a row's dots in points: less than the usual distance between samples, where they fit.

    Args:
        points: [N, samples, 2], in pixels; NaN where a path ended.
        width: Of a panel, in pixels.
    """
    count = points.shape[1]
    largest, least = (5.3, 2.8) if count <= 9 else (3.5, 2.5) if count <= 81 else (2.0, 1.6)
    there = [of_image[np.isfinite(of_image).all(1)] for of_image in points]
    nearest = [np.sort(np.linalg.norm(p[:, None] - p[None], axis=2), 1)[:, 1] for p in there if len(p) > 1]
    if not nearest:
        return largest
    return float(np.clip(0.9 * _SIDE * 72 / width * np.median(np.concatenate(nearest)), least, largest))


def offset_lengths(rows: list[LayerOffsets], lengths: dict[str, Tensor], path: Path) -> None:
    """Draw the distribution of the offsets' lengths, one violin per layer."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(2.7 + 0.75 * len(rows), 4.2))
    at = range(len(rows))
    axis.violinplot([lengths[row.layer].numpy() for row in rows], positions=at, widths=0.85, showextrema=False)
    axis.plot(at, [row.mean for row in rows], "o", color="black", markersize=4, label="mean")
    axis.plot(at, [row.p95 for row in rows], "_", color="tab:red", markersize=12, label="95th percentile")
    axis.set_xticks(at, [row.layer for row in rows], rotation=35, ha="right", fontsize=8)
    axis.set_ylabel("|offset|, pixels of the layer's input", fontsize=8)
    axis.set_ylim(0, 1.25 * max(row.p95 for row in rows) + 1e-3)
    axis.set_title("cut off at 1.25 times the largest 95th percentile", fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    _save(figure, path)


def offset_history(history: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draw the mean length of the offsets over the epochs, one line per layer from the first to the last."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.2, 3.4))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(history)))
    for (name, entries), colour in zip(history.items(), colours, strict=True):
        epochs, means, _ = zip(*entries, strict=True)
        axis.plot([epoch + 1 for epoch in epochs], means, "o-", markersize=3, color=colour, label=name)
    axis.set(xlabel="epoch", ylabel="mean |offset|, pixels of the layer's input")
    axis.xaxis.set_major_locator(plt.MaxNLocator(integer=True, min_n_ticks=1))
    last = max(epoch for entries in history.values() for epoch, _, _ in entries)
    axis.set_xlim(0.5, last + 1.5)  # also where there is one epoch
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    _save(figure, path)


def receptive_fields(rows: dict[str, dict[str, Tensor]], notes: dict[str, dict[str, str]], path: Path) -> None:
    """Draw effective receptive fields.

    Args:
        rows: [H, W] by network and stage. Each is drawn relative to its own maximum, as its square root, so that a
            hundredth of the maximum is still visible.
        notes: Text below each field, by network and stage.
        path: The PNG.
    """
    plt = pyplot()
    stages = list(next(iter(rows.values())))
    figure, axes = plt.subplots(
        len(rows), len(stages), figsize=(1.75 * len(stages) + 0.6, 2.1 * len(rows) + 0.6), squeeze=False
    )
    for i, (row, (network, fields)) in enumerate(zip(axes, rows.items(), strict=True)):
        for axis, stage in zip(row, stages, strict=True):
            field = fields[stage].cpu()
            axis.imshow((field / field.max()).sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(notes[network][stage], fontsize=7)
            if i == 0:
                axis.set_title(stage, fontsize=8)
        row[0].set_ylabel(network, fontsize=8)
    caption = (
        "colour: gradient of the central output, its square root relative to the largest\n"
        "rms: distance from the centre of mass; half: side of the square that holds half of the gradient"
    )
    figure.supxlabel(caption, fontsize=8)
    figure.tight_layout(pad=0.4)
    _save(figure, path)


def confusion(counts: Tensor, title: str, path: Path, names: Sequence[str] | None = None) -> None:
    """Draw a confusion matrix [classes, classes]: each row as shares, with counts if they fit, or else percent."""
    plt = pyplot()
    classes = len(counts)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, max(4.5, 2.0 + 0.36 * classes))  # wide enough for the title
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="answer", ylabel="truth", title=f"{title}\ncolour: share of the row")
    if classes <= 25:
        labels = names or [str(i) for i in range(classes)]
        axis.set_xticks(range(classes), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axis.set_yticks(range(classes), labels)
        as_percent = counts.amax() >= 10_000
        for (row, column), count in np.ndenumerate(counts.numpy()):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                text = f"{100 * share[row, column]:.0f}%" if as_percent else int(count)
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.tight_layout()
    _save(figure, path)
