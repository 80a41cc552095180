"""One training: timm's optimizer and schedule, a progress bar, metrics, checkpoints."""

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import accuracy
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from scripts.config import Train
from scripts.data import Loader, Splits
from zoo.optim import param_groups

Metrics = dict[str, float]


class MetricLog:
    """Writes one row an epoch to ``metrics.csv`` and to TensorBoard, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.board = SummaryWriter(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def write(self, epoch: int, metrics: Metrics) -> None:
        """Append a row."""
        path = self.folder / "metrics.csv"
        row = {"epoch": epoch, **metrics}
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        for key, value in metrics.items():
            self.board.add_scalar(key, value, epoch)
        self.board.flush()


def fit(
    model: nn.Module,
    splits: Splits,
    config: Train,
    device: torch.device,
    folder: Path,
    title: str,
    save: Callable[[], None],
) -> Metrics:
    """Train ``model`` in place and return the metrics of the last epoch; ``save`` runs after every epoch.

    Raises:
        FloatingPointError: When the loss is not finite; the checkpoint of the epoch before stays.
    """
    epoch_step = _Epoch(model, splits.train, config, device)
    metrics: Metrics = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with MetricLog(folder) as log, Progress(*columns) as progress:
        task = progress.add_task(title, total=config.optim.epochs * len(splits.train))
        for epoch in range(config.optim.epochs):
            start = time.perf_counter()
            metrics = {"train/loss": epoch_step(epoch, lambda: progress.advance(task))}
            metrics |= evaluate(epoch_step.model, splits.evaluate, config, device)
            metrics |= {"lr": epoch_step.learning_rate, "seconds": time.perf_counter() - start}
            log.write(epoch, metrics)
            save()
            progress.update(
                task,
                description=f"{title} epoch {epoch + 1}/{config.optim.epochs} "
                f"loss {metrics['train/loss']:.3f} top-1 {metrics['eval/top1']:.2f} %",
            )
    return metrics


class _Epoch:
    """Optimizer, schedule and loss of one training; calling it runs an epoch and returns the mean loss."""

    def __init__(self, model: nn.Module, loader: Loader, config: Train, device: torch.device) -> None:
        optim = config.optim
        self.loader, self.config, self.device = loader, config, device
        self.parameters = list(model.parameters())
        self.model: Any = torch.compile(model, fullgraph=True) if config.compile else model
        self.optimizer = create_optimizer_v2(
            model,
            opt=optim.opt,
            lr=optim.lr,
            param_group_fn=lambda m: param_groups(m, optim.weight_decay, optim.offset_lr_scale),
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=optim.sched,
            num_epochs=optim.epochs,
            warmup_epochs=optim.warmup_epochs,
            warmup_lr=0.0,
            warmup_prefix=True,
            min_lr=optim.min_lr,
            step_on_epochs=False,
            updates_per_epoch=len(loader),
        )
        if self.scheduler is None:
            raise ValueError(f"expected one of timm's schedulers, such as 'cosine' or 'step', got {optim.sched=}")

    @property
    def learning_rate(self) -> float:
        """That of the first group, the backbone's weights."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, epoch: int, advance: Callable[[], None]) -> float:
        self.model.train()
        total = 0.0
        for step, (images, labels) in enumerate(self.loader):
            loss = self._loss(images, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at epoch {epoch}, step {step}: lower "
                    f"optim.lr={self.config.optim.lr}, or set optim.clip_grad or dcn.offset_bound; "
                    "the checkpoint of the last whole epoch stays"
                )
            self.optimizer.zero_grad()
            loss.backward()
            if self.config.optim.clip_grad is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_grad)
            self.optimizer.step()
            self.scheduler.step_update(epoch * len(self.loader) + step + 1)
            total += value
            advance()
        return total / len(self.loader)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = _move(images, labels, self.config, self.device)
        smoothing = self.config.optim.label_smoothing
        return F.cross_entropy(self.model(images), labels, label_smoothing=smoothing)


@torch.no_grad()
def evaluate(model: Any, loader: Loader, config: Train, device: torch.device) -> Metrics:
    """Return the mean loss and the top-1 accuracy in percent over a loader."""
    model.eval()
    count, loss, top1 = 0, 0.0, 0.0
    for images, labels in loader:
        images, labels = _move(images, labels, config, device)
        logits = model(images)
        count += len(labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        top1 += accuracy(logits, labels)[0].item() * len(labels)
    return {"eval/loss": loss / count, "eval/top1": top1 / count}


def _move(images: Tensor, labels: Tensor, config: Train, device: torch.device) -> tuple[Tensor, Tensor]:
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return images.to(device, memory_format=memory_format), labels.to(device)
