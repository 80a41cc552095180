"""dcn-visualize: where a network samples, how far its offsets reach, and what its outputs depend on."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import zoo  # noqa: F401  (registers resnet50_dcn and the other presets with timm)

from .. import devices
from ..config.schema import Visualize
from ..data.loaders import examples, spread
from ..storage import checkpoint
from ..storage.existing import existing
from ..tasks.create import of_recipe
from . import cascade, figures, offset_statistics, outputs, places, receptive
from .checks import check
from .layers import deformable_layers
from .subject import Subject, of_checkpoint, of_timm

_log = logging.getLogger(__name__)


def run(config: Visualize, folder: Path) -> dict[str, Path]:
    """Draw all pictures of a network.

    Args:
        config: The composed config.
        folder: Receives the PNGs, ``offsets.json`` and ``receptive.json``.

    Returns:
        The pictures by name: "sampling", "offsets" and "history" for a converted network, "receptive" for any
        classifier, "predictions" for a detector or a segmenter.

    Raises:
        FileNotFoundError: If a checkpoint or a folder of images doesn't exist.
        ValueError: If no network is named, it is unknown, it doesn't fit the data, or the layer is unknown.
    """
    check(config)
    device = devices.chosen(config.device)
    torch.manual_seed(config.seed)
    subject = _subject(config, device)
    model = subject.model.to(device)
    images, targets = examples(subject.loader, max(config.images, config.field_images))
    images = images.to(device)
    chosen = spread(config.images, len(images))
    batch = images[chosen], [targets[i] for i in chosen]
    drawn = _of_offsets(subject, images, batch, config, folder) if deformable_layers(model) else {}
    if not drawn:
        _log.info("no deformable convolution: no picture of samples and offsets (of DCNv3 and DCNv4 there is none)")
    if config.checkpoint is not None and (task := of_recipe(checkpoint.read_recipe(config.checkpoint))):
        _log.info("no picture of receptive fields: it is drawn for classifiers only")
        drawn["predictions"] = folder / "predictions.png"
        path = drawn["predictions"]
        outputs.compare({"network": model}, batch, subject.transform, task, subject.classes, path)
    else:
        drawn["receptive"] = _of_receptive_field(model, images[: config.field_images], config, folder)
    for path in drawn.values():
        print(f"drawn: {path}")
    return drawn


def _subject(config: Visualize, device: torch.device) -> Subject:
    if (config.checkpoint is None) == (config.name is None):
        given = f"checkpoint={config.checkpoint} and name={config.name}"
        raise ValueError(f"expected one of checkpoint=PATH and name=NAME, got {given}")
    if config.checkpoint is not None:
        return of_checkpoint(existing(config.checkpoint), config.checkpoint, config.data, device, config.seed)
    return of_timm(str(config.name), config.pretrained, config.data, config.seed)


def _of_offsets(
    subject: Subject, images: Tensor, batch: tuple[Tensor, list[Any]], config: Visualize, folder: Path
) -> dict[str, Path]:
    model, (followed, targets) = subject.model, batch
    rows, lengths = offset_statistics.measure(model, images.split(subject.data.batch_size))
    table = Table(
        title=f"offsets over {len(images)} images, in pixels of each layer's input",
        caption="95 %: that many are shorter. outside %: samples beyond the image. mask: mean ± standard deviation",
    )
    for i, column in enumerate(("layer", "mean", "median", "95 %", "max", "outside %", "mask")):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        mask = "–" if row.mask is None else f"{row.mask:.2f} ± {row.mask_deviation:.2f}"
        numbers = (f"{value:.2f}" for value in (row.mean, row.median, row.p95, row.max))
        table.add_row(row.layer, *numbers, f"{100 * row.outside:.1f}", mask)
    Console(width=120).print(table)
    (folder / "offsets.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    drawn = {"sampling": folder / "sampling.png", "offsets": folder / "offsets.png"}
    found = cascade.record(model, followed)
    layer = config.layer or _layer_to_follow(found)
    size = images.shape[-2], images.shape[-1]
    if config.points is None:
        chosen = places.of_targets(targets, size)
    else:
        chosen = [places.named(point) for point in config.points]
    rows_of_points = [
        replace(cascade.followed(found, layer, config.levels, at), label=label) for label, at in chosen
    ]
    figures.sampling(followed, subject.transform, rows_of_points, drawn["sampling"], layer)
    through = cascade.chain(found, layer, config.levels)
    layers = f"{len(through)} layer{'s' if len(through) > 1 else ''}"
    print(f"{layer}: samples followed through {layers}: {', '.join(through)}")
    figures.offset_lengths(rows, lengths, drawn["offsets"])
    history = offset_statistics.read(Path(config.checkpoint).parent) if config.checkpoint else {}
    if history:
        drawn["history"] = folder / "offsets_history.png"
        figures.offset_history(history, drawn["history"])
    return drawn


def _layer_to_follow(found: dict[str, cascade.Samples], rows: int = 4) -> str:
    """Return the last layer whose output map is large enough to choose outputs from; else the first layer."""
    large = [name for name, samples in found.items() if min(samples.output_size) >= rows]
    return large[-1] if large else next(iter(found))


def _of_receptive_field(model: nn.Module, images: Tensor, config: Visualize, folder: Path) -> Path:
    networks: dict[str, dict[str, Tensor]] = {}
    before = _before(config)
    if before is not None:
        networks["before training"] = receptive.effective_fields(before.to(images.device), images)
    if deformable_layers(model):
        with receptive.without_offsets(model):
            networks["offsets set to 0"] = receptive.effective_fields(model, images)
    networks["after training" if config.checkpoint else "as it is"] = receptive.effective_fields(model, images)
    numbers = {
        network: {
            stage: {"rms": receptive.spread(field), "half": receptive.side_of_half(field)}
            for stage, field in fields.items()
        }
        for network, fields in networks.items()
    }
    (folder / "receptive.json").write_text(json.dumps(numbers, indent=1) + "\n")
    notes = {
        network: {stage: f"rms {n['rms']:.1f} px, half in {n['half']}²" for stage, n in stages.items()}
        for network, stages in numbers.items()
    }
    path = folder / "receptive.png"
    figures.receptive_fields(networks, notes, path)
    return path


def _before(config: Visualize) -> nn.Module | None:
    if config.before is not None:
        return checkpoint.load(existing(config.before))
    if config.checkpoint is None:
        return None
    torch.manual_seed(config.seed)
    return checkpoint.build(checkpoint.read_recipe(config.checkpoint))
