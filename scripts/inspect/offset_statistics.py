"""Statistics of a network's offsets, per layer and over the epochs of a training.

A training calls ``log_epoch`` once per epoch; it appends to ``offsets.csv``, which ``dcn-visualize`` draws.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d

from ..storage import csv_log
from .layers import watched

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE = "offsets.csv"


@dataclass(frozen=True, kw_only=True)
class LayerOffsets:
    """One layer's offsets over some images: lengths in pixels of the map that the layer reads."""

    layer: str
    mean: float
    median: float
    p95: float
    max: float
    outside: float  # share of the samples outside the map, which read zeros
    mask: float | None  # mean mask, None in DCNv1
    mask_deviation: float | None


@torch.no_grad()
def measure(model: nn.Module, batches: Iterable[Tensor]) -> tuple[list[LayerOffsets], dict[str, Tensor]]:
    """Measure the offsets of every deformable layer.

    Args:
        model: It is in eval mode during the call.
        batches: Images [N, C, H, W], on the device of the model.

    Returns:
        A row per layer, in the order of execution, and the lengths of up to 100,000 offsets by layer.
    """
    lengths: dict[str, list[Tensor]] = {}
    masks: dict[str, list[Tensor]] = {}
    outside: dict[str, list[float]] = {}

    def seen(name: str, layer: DeformConv2d, input: Tensor) -> None:
        if not len(input):  # a detector's head, where no region was found
            return
        offset, mask = layer.offsets(input)
        pairs = offset.float().unflatten(1, (-1, 2))  # [N, G * K, 2, Ho, Wo]
        lengths.setdefault(name, []).append(pairs.square().sum(2).sqrt().flatten().cpu())
        if mask is not None:
            masks.setdefault(name, []).append(mask.float().flatten().cpu())
        positions = layer.sampling_positions(input)  # [N, G, K, 2, Ho, Wo]
        size = positions.new_tensor(input.shape[-2:]).view(2, 1, 1)
        # More than a pixel outside the border, no corner of the bilinear sample is in the map.
        away = ((positions <= -1) | (positions >= size)).any(3)
        outside.setdefault(name, []).append(away.float().mean().item())

    training = model.training
    model.eval()
    try:
        with watched(model, seen):
            for images in batches:
                model(images)
    finally:
        model.train(training)
    values = {name: torch.cat(parts) for name, parts in lengths.items()}
    rows = [_row(name, value, outside[name], masks.get(name)) for name, value in values.items()]
    return rows, {name: _thinned(value) for name, value in values.items()}


def log_epoch(model: nn.Module, images: Tensor, folder: Path, board: "SummaryWriter | None", epoch: int) -> None:
    """Append this epoch's statistics to ``folder/offsets.csv`` and to TensorBoard; nothing for a plain network.

    Args:
        model: The network, not its compiled wrapper.
        images: A batch [N, C, H, W] on its device, the same in every epoch.
        folder: The folder of the training.
        board: Receives a histogram and the mean for each layer; None without TensorBoard.
        epoch: Number of the epoch.
    """
    rows, lengths = measure(model, [images])
    if not rows:
        return
    csv_log.drop_from(folder / FILE, epoch)
    csv_log.append(folder / FILE, ({"epoch": epoch, **asdict(row)} for row in rows))
    if board is None:
        return
    for row in rows:
        finite = lengths[row.layer][lengths[row.layer].isfinite()]
        if len(finite):  # without finite values, as after a divergence, there is no histogram
            board.add_histogram(f"offsets/{row.layer}", finite, epoch)
        board.add_scalar(f"offset_mean/{row.layer}", row.mean, epoch)


def read(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return (epoch, mean, p95) of ``folder/offsets.csv`` by layer; empty if the file doesn't exist."""
    path = folder / FILE
    found: dict[str, list[tuple[int, float, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                entry = (int(row["epoch"]), float(row["mean"]), float(row["p95"]))
                found.setdefault(row["layer"], []).append(entry)
    return found


def _row(name: str, lengths: Tensor, outside: list[float], masks: list[Tensor] | None) -> LayerOffsets:
    mask = None if masks is None else torch.cat(masks)
    ordered = _thinned(lengths).sort().values
    return LayerOffsets(
        layer=name,
        mean=lengths.mean().item(),
        median=ordered[len(ordered) // 2].item(),
        p95=ordered[int(0.95 * (len(ordered) - 1))].item(),
        max=lengths.max().item(),
        outside=sum(outside) / len(outside),
        mask=None if mask is None else mask.mean().item(),
        mask_deviation=None if mask is None else mask.std().item(),
    )


def _thinned(values: Tensor, limit: int = 100_000) -> Tensor:
    return values[:: -(-len(values) // limit)]
