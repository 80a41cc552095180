"""The training loop: accelerate's processes and precision, timm's recipe, and a saved state that loses nothing."""

import logging
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import broadcast_object_list, convert_to_fp32, send_to_device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset

from ..config.schema import Train
from ..data.loaders import Splits, examples
from ..data.order import seed_all
from ..inspect import offset_statistics
from ..storage import checkpoint
from ..tasks.task import Metrics, Output, Targets, Task
from . import divergence, optimization, state
from .metric_log import MetricLog
from .offsets import WithOffsets
from .stop import Stopped, StopRequest

_log = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    splits: Splits,
    task: Task,
    config: Train,
    accelerator: Accelerator,
    folder: Path,
    weights: checkpoint.Recipe,
    resume: bool = False,
    started: Callable[[], None] | None = None,
) -> Metrics:
    """Train ``model``, and return the metrics of the last epoch; it then has the weights that were evaluated.

    Args:
        model: On the CPU or on the device.
        splits: The data.
        task: What the model is trained for.
        config: The whole config.
        accelerator: Shared by the processes.
        folder: Receives ``last.safetensors``, ``best.safetensors``, ``metrics.csv`` and ``state.pt``.
        weights: The recipe for the checkpoints.
        resume: Resume from the state in the folder, if there is one.
        started: Called by the first process before the first step, once a state is read.

    Raises:
        FloatingPointError: If the loss or a weight is not finite; the last state stays.
        Stopped: After SIGTERM or Ctrl-C, with the state saved.
        ValueError: If the recipe doesn't fit the network, the data or the number of processes.
    """
    training = _Training(model, splits, task, config, accelerator, folder, weights)
    try:
        # Only the first process has the file.
        if broadcast_object_list([resume and training.path.exists()])[0]:
            training.restore()
        if started is not None and accelerator.is_main_process:
            started()
        with StopRequest() as training.stop:
            return training.run()
    finally:
        training.net.remove()


class _Training:
    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        task: Task,
        config: Train,
        accelerator: Accelerator,
        folder: Path,
        weights: checkpoint.Recipe,
    ) -> None:
        self.config, self.accelerator, self.folder, self.weights = config, accelerator, folder, weights
        self.model, self.task, self.title, self.path = model, task, folder.name, folder / state.NAME
        self.probe: Tensor | None = None  # images whose offsets each epoch records
        self.evaluated = splits.evaluate
        self.position, self.saved_at, self.stop = state.Position(), time.monotonic(), StopRequest()
        optimization.check(config.optim, config.data.batch_size, accelerator.num_processes)
        if accelerator.num_processes > 1 and isinstance(splits.train.dataset, IterableDataset):
            raise ValueError(
                f"'{config.data.name}' can only be read from its start, which one process does; "
                f"take a folder or hfds/ for {accelerator.num_processes} processes"
            )

        # From depthwise filters, whose two layouts are the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

        self.frozen = optimization.freeze(model, config.optim.freeze)
        self.ema = optimization.create_ema(model, config.optim.ema, accelerator.is_fsdp2)
        self.net = WithOffsets(model)
        called: nn.Module = self.net
        if config.compile:
            called = torch.compile(called, fullgraph=True)  # type: ignore[assignment]
        optimizer = optimization.create_optimizer(model, config.optim)
        self.steps = self.position.steps = len(splits.train)
        self.scheduler = optimization.create_scheduler(optimizer, config.optim, self.steps)
        self.called, self.optimizer = accelerator.prepare(called, optimizer)
        self.loader, self.held = accelerator.prepare(splits.train, splits.evaluate)
        self.keys: Any = splits.train.batch_sampler
        # Reading a value waits for the device. On a GPU it is read only every few steps, so that steps can be
        # queued.
        self.look_every = 1 if accelerator.device.type == "cpu" else 10

    def run(self) -> Metrics:
        evaluated: Metrics = {}
        epochs, main = self.config.optim.epochs, self.accelerator.is_main_process
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        first = self.position.epoch
        log = MetricLog(self.folder, first, self.config, quiet=not main)
        with log, Progress(*columns, disable=not main) as progress:
            done = first * self.steps + self.position.step
            bar = progress.add_task(self.title, total=epochs * self.steps, completed=done)
            for epoch in range(first, epochs):
                if epoch > first:
                    self.position = state.Position(epoch, steps=self.steps, best=self.position.best)
                start = time.perf_counter()
                self._train(lambda: progress.advance(bar))
                evaluated = self._evaluate()
                metrics = {"train/loss": self.position.loss / self.steps}
                metrics |= {f"eval/{name}": value for name, value in evaluated.items()}
                if offsets := self.position.offsets:
                    metrics["train/offset"] = sum(offsets) / len(offsets)
                metrics |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
                self._keep(evaluated[self.task.best])
                layers = zip(self.net.layers, offsets, strict=False)
                log.write(epoch, metrics, {f"offset/{name}": value for name, value in layers})
                if main and not any(isinstance(p, DTensor) for p in self.model.parameters()):
                    offset_statistics.log_epoch(self.model, self._watched(), self.folder, log.board, epoch)
                shown = {"loss": f"{metrics['train/loss']:.3f}", **self.task.show(evaluated)}
                found = " ".join(f"{title} {value}" for title, value in shown.items())
                progress.update(bar, description=f"{self.title} epoch {epoch + 1}/{epochs} {found}")
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        return evaluated

    def restore(self) -> None:
        """Resume from the saved state."""
        ema = None if self.ema is None else self.ema.module
        self.position = state.load(self.path, self.accelerator, self.model, self.optimizer.optimizer, ema)
        if self.position.step == self.position.steps:
            self.position.step = self.steps
        elif self.position.steps != self.steps:
            raise ValueError(
                f"{self.path} is {self._where(self.position.steps)}, and now an epoch has {self.steps}: set "
                "data.batch_size and data.max_batches to their previous values"
            )
        self.position.steps = self.steps
        self.scheduler.step_update(self.position.epoch * self.steps + self.position.step)
        _log.info("%s: goes on from %s", self.path, self._where())

    def _train(self, advance: Callable[[], None]) -> None:
        """Train from the current position to the end of the epoch."""
        position, losses = self.position, list[Tensor]()
        self.called.train()
        for module in self.frozen:
            module.eval()
        if hasattr(self.keys, "set_epoch"):
            self.keys.set_epoch(position.epoch)
        seed_all(self.config.seed, position.epoch, self.accelerator.process_index)
        loader = skip_first_batches(self.loader, position.step) if position.step else self.loader
        loader.set_epoch(position.epoch)
        if position.step == self.steps:
            return
        for images, targets in loader:
            loss, sizes = self._step(images, targets, position.epoch * self.steps + position.step)
            losses.append(loss)
            position.step += 1
            advance()
            by_step = self.config.checkpoint_every is not None and position.step % self.config.checkpoint_every == 0
            if position.step % self.look_every == 0 or position.step == self.steps or by_step:
                due, signum = self._look(losses, sizes)
                losses.clear()
                if signum or due or by_step or position.step == self.steps:
                    self._save_state()
                if signum:
                    raise Stopped(
                        f"{signal.Signals(signum).name}: stopped at {self._where()}; saved {self.path}", signum
                    )

    def _step(self, images: Tensor, targets: Targets, step: int) -> tuple[Tensor, Tensor]:
        """Take an optimizer step; return the loss and the mean |offset| of each layer."""
        optim, parts = self.config.optim, self.config.optim.accumulate
        seed_all(self.config.seed, step, self.accelerator.process_index, 1)
        images, targets = self.task.prepare(images.to(memory_format=_memory_format(self.config)), targets)
        total, sizes = torch.zeros((), device=images.device), torch.zeros(0)
        for part, target in zip(images.chunk(parts), _chunks(targets, parts), strict=True):
            with self.accelerator.accumulate(self.called):
                output, sizes, squares = self.called(*self.task.inputs(part, target))
                loss = self.task.loss(output, target)
                if optim.offset_l2:
                    loss = loss + optim.offset_l2 * squares.sum()
                self.accelerator.backward(loss)
                total += loss.detach() / parts
        if step < optim.offset_warmup_steps:
            for parameter in self._predictors():
                parameter.grad = None
        if optim.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step_update(step + 1)
        if self.ema is not None:
            self.ema.update(self.model, step)
        return total, sizes

    def _predictors(self) -> list[nn.Parameter]:
        return [parameter for layer in self.net.layers.values() for parameter in layer.predictor_parameters()]

    def _look(self, losses: list[Tensor], sizes: Tensor) -> tuple[bool, int]:
        """Read all processes' losses since the last call; return whether to save, and for which signal to stop."""
        minutes = (time.monotonic() - self.saved_at) / 60
        due = self.accelerator.is_main_process and minutes >= self.config.checkpoint_minutes
        mine = torch.cat([torch.stack(losses), sizes.to(losses[0])])
        flags = mine.new_tensor([float(due), float(self.stop.signum)])
        values = self.accelerator.reduce(torch.cat([flags, mine]), "mean").tolist()
        due, signum = values[0] > 0, self.stop.signum or (signal.SIGTERM if values[1] > 0 else 0)
        found, offsets = values[2 : 2 + len(losses)], values[2 + len(losses) :]
        first = self.position.step - len(found)
        divergence.check_losses(found, self.position.epoch, first, self.config, self.path)
        self.position.loss += sum(found)
        if self.accelerator.is_main_process:
            where, scale = f"{self.title} at {self._where()}", self.config.optim.offset_lr_scale
            divergence.warn_far(self.net.layers, self.position.offsets, offsets, where, scale)
        self.position.offsets = offsets
        return due, signum

    def _where(self, steps: int | None = None) -> str:
        return f"epoch {self.position.epoch + 1}, step {self.position.step} of {steps or self.steps}"

    def _save_state(self) -> None:
        divergence.check_weights(self.model, self.accelerator, self._where(), self.config, self.path)
        ema = None if self.ema is None else self.ema.module
        state.save(self.path, self.position, self.accelerator, self.model, self.optimizer.optimizer, ema)
        self.saved_at = time.monotonic()

    def _keep(self, score: float) -> None:
        """Write the evaluated weights as the last ones and, if they are, as the best."""
        found = state.whole(self.model) if self.ema is None else self.ema.module.state_dict()
        names = ["last.safetensors"] + (["best.safetensors"] if score > self.position.best else [])
        if self.accelerator.is_main_process:
            for name in names:
                checkpoint.save_weights(found, self.weights, self.folder / name)
        self.position.best = max(score, self.position.best)

    @torch.no_grad()
    def _evaluate(self) -> Metrics:
        """Return the task's metrics over the evaluation split."""
        net = self.called if self.ema is None else self.ema.module
        net.eval()
        found = self.task.evaluation(self.accelerator.device)
        for images, targets in self.held:
            images = images.to(memory_format=_memory_format(self.config))
            with self.accelerator.autocast():
                out = net(images)
            output = convert_to_fp32(out if self.ema is not None else out[0])
            found.update(*self._gathered(output, targets))
        return found.compute()

    def _watched(self) -> Tensor:
        if self.probe is None:
            images, _ = examples(self.evaluated, self.config.data.batch_size)
            self.probe = images.to(self.accelerator.device, memory_format=_memory_format(self.config))
        return self.probe

    def _gathered(self, output: Output, targets: Targets) -> tuple[Output, Targets]:
        """Return the outputs and targets of all processes."""
        if isinstance(output, Tensor):
            return self.accelerator.gather_for_metrics((output, targets))
        # Lists with an entry for each image, whose tensors differ in size.
        pairs = list(zip(*send_to_device((output, targets), "cpu"), strict=True))
        pairs = self.accelerator.gather_for_metrics(pairs, use_gather_object=True)
        return [one for one, _ in pairs], [target for _, target in pairs]


def _chunks(targets: Targets, parts: int) -> Sequence[Targets]:
    if isinstance(targets, Tensor):
        return targets.chunk(parts)
    size = len(targets) // parts
    return [targets[i * size : (i + 1) * size] for i in range(parts)]


def _memory_format(config: Train) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format
