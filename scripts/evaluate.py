"""dcn-evaluate: accuracy, confusion matrix, accuracy under corruptions and throughput of checkpoints."""

import csv
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.data import resolve_data_config
from torch import Tensor, nn

from scripts import checkpoint, config_inspect, figures
from scripts.benchmark.show import provenance
from scripts.config import check_overrides
from scripts.config_inspect import Evaluate
from scripts.corruptions import CORRUPTIONS, corrupt
from scripts.data import Batch, Loader, create_splits
from scripts.visualize import existing


@dataclass(kw_only=True)
class Result:
    """What was measured of one checkpoint; accuracies in percent."""

    checkpoint: str
    parameters: int
    top1: float
    top5: float
    confusion: list[list[int]]  # rows: the class of the image, columns: the answer
    images_per_second: float = 0.0
    corruptions: dict[str, list[float]] = field(default_factory=dict)  # top-1 by severity


@dataclass
class Normalisation:
    """Mean and deviation that images were normalised with, [C, 1, 1]."""

    mean: Tensor
    std: Tensor

    def undo(self, images: Tensor) -> Tensor:
        """Return images of [0, 1]."""
        return (images * self.std + self.mean).clamp(0, 1)

    def apply(self, images: Tensor) -> Tensor:
        """Return what the network reads."""
        return (images - self.mean) / self.std


def run(config: Evaluate, folder: Path) -> dict[str, Result]:
    """Evaluate, print and save.

    Args:
        config: The composed config.
        folder: Receives ``results.json``, and by network ``confusion-<network>.csv`` and ``.png``.

    Raises:
        FileNotFoundError: For a checkpoint or a folder of images that is not there.
        ValueError: For a network that doesn't fit the data, an unknown corruption or severity.
    """
    names = list(CORRUPTIONS) if config.corruptions == ["all"] else config.corruptions
    if unknown := set(names) - set(CORRUPTIONS):
        raise ValueError(f"expected corruptions among {', '.join(CORRUPTIONS)}, got {sorted(unknown)}")
    if not set(config.severities) <= set(range(1, 6)):
        raise ValueError(f"expected severities of 1 to 5, got {config.severities=}")
    device = torch.device(
        config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    paths = [existing(path) for path in (config.checkpoint, *config.against)]
    models = {name: checkpoint.load(path, device) for name, path in _named(paths).items()}
    first = next(iter(models.values()))
    splits = create_splits(config.data, resolve_data_config({}, model=first), config.seed)
    for name, model in models.items():
        _check(name, model, splits.num_classes, next(iter(splits.evaluate))[0])
    mean, std = (torch.tensor(splits.transform[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    normalisation = Normalisation(mean, std)
    results = {}
    for (name, model), path in zip(models.items(), paths, strict=True):
        call = _prepared(model, config)
        results[name] = _accuracy(call, model, splits.evaluate, splits.num_classes, device, str(path))
        _corrupted(call, splits.evaluate, normalisation, names, config, device, results[name])
    images = next(iter(splits.evaluate))[0].to(device)
    speeds = throughput({name: _prepared(model, config) for name, model in models.items()}, images, config.rounds)
    for name, speed in speeds.items():
        results[name].images_per_second = speed
    _write(results, config, len(images), folder)
    return results


def throughput(models: dict[str, Any], images: Tensor, rounds: int) -> dict[str, float]:
    """Return images per second, the median over rounds in which the networks take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for i in range(rounds + 2):  # two to warm up
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                if images.is_cuda:
                    torch.cuda.synchronize(images.device)
                if i >= 2:
                    seconds[name].append(time.perf_counter() - start)
    return {name: len(images) / statistics.median(values) for name, values in seconds.items()}


def _named(paths: list[Path]) -> dict[str, Path]:
    """Name checkpoints by their folder, dcn-train's variant, or by their path where that is ambiguous."""
    folders = [path.parent.name or path.stem for path in paths]
    names = folders if len(set(folders)) == len(paths) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"expected different checkpoints, got {names}")
    return dict(zip(names, paths, strict=True))


def _check(name: str, model: nn.Module, num_classes: int, images: Tensor) -> None:
    if getattr(model, "num_classes", num_classes) != num_classes:
        raise ValueError(
            f"'{name}' tells {model.num_classes} classes apart, and the data have {num_classes}: "
            "set data= to what it was trained on"
        )
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    if channels != images.shape[1]:
        raise ValueError(
            f"'{name}' reads {channels} channels, and the data have {images.shape[1]}: "
            "set data= to what it was trained on"
        )


def _prepared(model: nn.Module, config: Evaluate) -> Any:
    model = model.to(memory_format=torch.channels_last) if config.channels_last else model
    return torch.compile(model, fullgraph=True) if config.compile else model


@torch.inference_mode()
def _accuracy(call: Any, model: nn.Module, loader: Loader, classes: int, device: torch.device, path: str) -> Result:
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    among_five = 0
    for images, labels in track(loader, description="accuracy", transient=True):
        logits = call(images.to(device)).float().cpu()
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(
            classes, classes
        )
        top5 = logits.topk(min(5, classes)).indices
        among_five += int((top5 == labels[:, None]).any(1).sum())
    total = int(confusion.sum())
    return Result(
        checkpoint=path,
        parameters=sum(p.numel() for p in model.parameters()),
        top1=100 * int(confusion.trace()) / total,
        top5=100 * among_five / total,
        confusion=confusion.tolist(),
    )


@torch.inference_mode()
def _corrupted(
    call: Any,
    loader: Loader,
    normalisation: Normalisation,
    names: list[str],
    config: Evaluate,
    device: torch.device,
    result: Result,
) -> None:
    batches: list[Batch] = list(islice(loader, config.corruption_batches)) if names else []
    count = sum(len(labels) for _, labels in batches)
    for name in track(names, description="corruptions", transient=True):
        result.corruptions[name] = []
        for severity in config.severities:
            generator, right = torch.Generator().manual_seed(config.seed), 0
            for images, labels in batches:
                bare = normalisation.undo(images.to(device))
                answer = call(normalisation.apply(corrupt(name, bare, severity, generator))).argmax(1).cpu()
                right += int((answer == labels).sum())
            result.corruptions[name].append(100 * right / count)


def _write(results: dict[str, Result], config: Evaluate, batch: int, folder: Path) -> None:
    command = " ".join(["dcn-evaluate", *sys.argv[1:]])
    report = {
        **provenance(),
        "command": command,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "networks": {name: asdict(result) for name, result in results.items()},
    }
    (folder / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, result in results.items():
        stem = f"confusion-{name.strip('/').replace('/', '-')}"
        with (folder / f"{stem}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(result.confusion)
        figures.confusion(
            torch.tensor(result.confusion), f"{name}: top-1 {result.top1:.2f} %", folder / f"{stem}.png"
        )
    _print(results, config, batch)
    print(f"written: {folder / 'results.json'}, confusion matrices as CSV and PNG beside it")


def _print(results: dict[str, Result], config: Evaluate, batch: int) -> None:
    console = Console(width=120)
    count = sum(map(sum, next(iter(results.values())).confusion))
    table = Table(title=f"{count:,} images of {config.data.name or config.data.root}")
    columns = ("network", "top-1 %", "top-5 %", "worst class %", "parameters", f"images/s (batch {batch})")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for name, result in results.items():
        worst, recall = worst_class(result.confusion)
        numbers = f"{result.top1:.2f}", f"{result.top5:.2f}", f"{recall:.1f} (class {worst})"
        table.add_row(name, *numbers, f"{result.parameters:,}", f"{result.images_per_second:.0f}")
    console.print(table)
    names = next(iter(results.values())).corruptions
    if not names:
        return
    table = Table(title=f"top-1 % under corruption, mean over severities {config.severities}")
    table.add_column("corruption")
    for name in results:
        table.add_column(name, justify="right")
    mean = {name: [statistics.mean(r.corruptions[c]) for c in names] for name, r in results.items()}
    for i, corruption in enumerate(names):
        table.add_row(corruption, *(f"{values[i]:.1f}" for values in mean.values()))
    table.add_section()
    table.add_row("mean", *(f"{statistics.mean(values):.1f}" for values in mean.values()))
    console.print(table)


def worst_class(confusion: list[list[int]]) -> tuple[int, float]:
    """Return the class with the least recall among those that occur, and the recall in percent."""
    recalls = {i: 100 * row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)}
    return min(recalls.items(), key=lambda item: item[1])


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="evaluate")
def _main(config: DictConfig) -> None:
    try:
        run(cast(Evaluate, OmegaConf.to_object(config)), Path(HydraConfig.get().runtime.output_dir))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Entry point of the console command."""
    config_inspect.register()
    check_overrides(Evaluate)
    if not any(argument.startswith("checkpoint=") for argument in sys.argv[1:]) and not _asks_for_help():
        sys.exit("error: which network? Say checkpoint=runs/train/<time>/dcn/last.safetensors")
    _main()


def _asks_for_help() -> bool:
    return any(argument in ("--help", "-h", "--hydra-help", "--cfg", "-c") for argument in sys.argv[1:])


if __name__ == "__main__":
    main()
