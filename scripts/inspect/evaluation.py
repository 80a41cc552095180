"""dcn-evaluate: accuracy, confusion matrix, accuracy under corruptions and throughput of checkpoints."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from .. import devices, timing
from ..config.ranges import check_least
from ..config.schema import Evaluate
from ..data.corruptions import CORRUPTIONS, STILL, corrupt
from ..data.loaders import Batch, examples
from ..storage.checkpoint import read_recipe
from ..storage.existing import existing
from ..storage.files import uninterrupted
from ..storage.provenance import provenance
from ..tasks.classification import percent
from ..tasks.create import of_recipe
from . import measured, outputs, scores
from .scores import Result
from .subject import Subject, of_checkpoint

_log = logging.getLogger(__name__)


@dataclass
class Normalisation:
    """Mean and standard deviation of the images' normalisation, [C, 1, 1]."""

    mean: Tensor
    std: Tensor

    def undo(self, images: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)

    def apply(self, images: Tensor) -> Tensor:
        """Return normalised images, as the network reads them."""
        return (images - self.mean) / self.std


def run(config: Evaluate, folder: Path) -> dict[str, Result]:
    """Evaluate, print and save.

    Results of detectors and segmenters are in the files, and none are returned.

    Args:
        config: The composed config.
        folder: Receives ``results.json``, and ``confusion-<network>.csv`` and ``.png`` for each network, and
            ``predictions.png`` of those with a head.

    Raises:
        FileNotFoundError: If a checkpoint or a folder of images doesn't exist.
        ValueError: If a network doesn't fit the data, for instance because it doesn't know their classes, or a
            corruption or severity is unknown.
    """
    names = list(CORRUPTIONS) if config.corruptions == ["all"] else config.corruptions
    if unknown := set(names) - set(CORRUPTIONS):
        raise ValueError(f"expected corruptions among all, {', '.join(CORRUPTIONS)}, got {sorted(unknown)}")
    if not set(config.severities) <= set(range(1, 6)):
        raise ValueError(f"expected severities of 1 to 5, got severities={config.severities}")
    check_least(config, {"rounds": 1, "corruption_batches": 1})
    if not config.severities and names:
        raise ValueError("expected a severity or more, got severities=[]; or set corruptions=[]")
    if not 0 <= config.score <= 1:
        raise ValueError(f"expected a score in [0, 1], got score={config.score}")
    device = devices.chosen(config.device)
    stamp = provenance("dcn-evaluate")
    paths = _named([existing(path) for path in (config.checkpoint, *config.against)])
    subjects = {name: of_checkpoint(path, name, config.data, device, config.seed) for name, path in paths.items()}
    if tasks := {
        name: task for name, path in paths.items() if (task := of_recipe(read_recipe(path), config.score))
    }:
        _with_heads(subjects, tasks, config, device, stamp, folder)
        return {}
    labels = {name: subject.labels() for name, subject in subjects.items()}
    calls = {name: _prepared(subject.model, config) for name, subject in subjects.items()}
    results = {}
    for name, subject in subjects.items():
        results[name] = _accuracy(calls[name], subject, labels[name], device, str(paths[name]))
        top1 = partial(_top1, calls[name], labels[name])
        _log.info("%s: top-1 %.2f %%", name, results[name].top1)
        results[name].corruptions = _under_corruption(top1, subject, names, config, device)
    images = {name: next(iter(subject.loader))[0].to(device) for name, subject in subjects.items()}
    for name, speed in throughput(calls, images, config.rounds).items():
        results[name].images_per_second = speed
    batch = len(next(iter(images.values())))
    with uninterrupted():
        scores.write(results, stamp, batch, folder)
    data = next(iter(subjects.values())).data
    scores.show(results, str(data.name or data.root), config.severities, batch)
    return results


def _with_heads(
    subjects: dict[str, Subject],
    tasks: dict[str, Any],
    config: Evaluate,
    device: torch.device,
    stamp: Any,
    folder: Path,
) -> None:
    """Evaluate detectors or segmenters, print, save and draw."""
    if len({task.kind for task in tasks.values()}) > 1:
        raise ValueError(
            "expected checkpoints with the same metrics, got boxes, masks or pixels; evaluate them apart"
        )
    if config.compile:
        raise ValueError("compile=true is for classifiers; drop it")
    names = list(STILL) if config.corruptions == ["all"] else config.corruptions
    if moving := [name for name in names if name not in STILL]:
        raise ValueError(
            f"{', '.join(moving)} would move objects away from their boxes and masks; expected corruptions among "
            f"{', '.join(STILL)}"
        )
    models = {name: _prepared(subject.model, config) for name, subject in subjects.items()}
    found = {}
    for name, subject in subjects.items():
        found[name] = measured.measure(
            models[name], track(subject.loader, description="evaluation", transient=True), tasks[name], device
        )
        best = partial(_best, models[name], tasks[name], device)
        metrics = tasks[name].show(found[name].metrics)
        _log.info("%s: %s", name, ", ".join(f"{title} {value}" for title, value in metrics.items()))
        found[name].corruptions = _under_corruption(best, subject, names, config, device)
    images = {name: next(iter(subject.loader))[0].to(device) for name, subject in subjects.items()}
    for name, speed in throughput(models, images, config.rounds).items():
        found[name].images_per_second = speed
    first = next(iter(subjects.values()))
    with uninterrupted():
        measured.write(found, stamp, folder)
    title = Path(first.data.root).name if first.data.root else first.data.name
    measured.show(found, title, next(iter(tasks.values())).best, config.severities)
    shown, targets = examples(first.loader, outputs.COMPARED)
    task, path = next(iter(tasks.values())), folder / "predictions.png"
    outputs.compare(models, (shown.to(device), targets), first.transform, task, first.classes, path)
    print(f"predictions beside the truth: {path}")


def throughput(models: dict[str, Any], images: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Return images per second: the median over rounds in which the networks alternate, each with its images."""
    calls = {name: partial(model, images[name]) for name, model in models.items()}
    with torch.inference_mode():
        times = timing.interleaved(calls, rounds, next(iter(images.values())).device.type)
    timing.warn_if_scattered(times)
    return {name: 1000 * len(images[name]) / time.median for name, time in times.items()}


def _named(paths: list[Path]) -> dict[str, Path]:
    """Name checkpoints by their folder, dcn-train's variant, or by their path if that is ambiguous."""
    folders = [path.parent.name or path.stem for path in paths]
    names = folders if len(set(folders)) == len(paths) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected different checkpoints, got {names}")
    return dict(zip(names, paths, strict=True))


def _prepared(model: nn.Module, config: Evaluate) -> Any:
    model = model.to(memory_format=torch.channels_last) if config.channels_last else model
    return torch.compile(model, fullgraph=True) if config.compile else model


@torch.inference_mode()
def _accuracy(call: Any, subject: Subject, labels: Tensor, device: torch.device, path: str) -> Result:
    """Evaluate one network, whose output ``labels[c]`` is the score of class c of the data."""
    outputs = subject.model.num_classes
    confusion = MulticlassConfusionMatrix(outputs)
    top5 = MulticlassAccuracy(outputs, top_k=min(5, outputs), average="micro")
    for images, found in track(subject.loader, description="accuracy", transient=True):
        logits, wanted = call(images.to(device)).float().cpu(), labels[found]
        confusion.update(logits, wanted)
        top5.update(logits, wanted)
    counts = confusion.compute()
    return Result(
        checkpoint=path,
        parameters=sum(p.numel() for p in subject.model.parameters()),
        top1=100 * int(counts.trace()) / int(counts.sum()),
        top5=percent(top5.compute()),
        classes=subject.answers,
        confusion=counts.tolist(),
    )


def _under_corruption(
    score: Callable[[Iterator[Batch]], float],
    subject: Subject,
    names: list[str],
    config: Evaluate,
    device: torch.device,
) -> dict[str, list[float]]:
    """Return what ``score`` makes of the corrupted batches, by corruption and severity."""
    # The batches that are corrupted, read once.
    batches = list(islice(subject.loader, config.corruption_batches)) if names else []
    if names:
        _log.info(
            "%s: %d corruptions of %d severities on %d images; corruptions=[] skips them",
            *(subject.name, len(names), len(config.severities), sum(len(images) for images, _ in batches)),
        )
    return {
        name: [
            score(_corrupted(batches, subject, name, severity, config, device)) for severity in config.severities
        ]
        for name in track(names, description="corruptions", transient=True)
    }


@torch.inference_mode()
def _top1(call: Any, labels: Tensor, batches: Iterator[Batch]) -> float:
    """Return the top-1 accuracy in percent."""
    right = count = 0
    for images, found in batches:
        right += int((call(images).argmax(1).cpu() == labels[found]).sum())
        count += len(found)
    return 100 * right / count


def _best(model: nn.Module, task: Any, device: torch.device, batches: Iterator[Batch]) -> float:
    """Return the metric of a task's best epoch."""
    return float(measured.measure(model, batches, task, device).metrics[task.best])


def _corrupted(
    batches: list[Batch], subject: Subject, name: str, severity: int, config: Evaluate, device: torch.device
) -> Iterator[Batch]:
    """Yield batches with corrupted images."""
    mean, std = (torch.tensor(subject.transform[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    normalisation, generator = Normalisation(mean, std), torch.Generator().manual_seed(config.seed)
    for images, found in batches:
        bare = normalisation.undo(images.to(device))
        yield normalisation.apply(corrupt(name, bare, severity, generator)), found
