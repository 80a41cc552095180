"""Training steps of dcn-train beside those of a bare loop: python benchmarks/training.py NAME [KEY=VALUE ...].

Both train the same plain detector or segmenter (no DCN) on the same data with torch's AdamW. Their steps alternate
in one process, which counts its CPU seconds; a step includes the loading of its batch. The peak of memory is that
of a process that takes only one kind of steps, above what it had before the first step (Linux only). The overrides
are those of ``dcn-train``:

    python benchmarks/training.py fcos experiment=detect_digits
    python benchmarks/training.py unet experiment=segment_small data.root=/nuclei data.workers=0 --steps 50

Results are added to ``benchmarks/results/training.json`` under NAME.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Train
from zoo.scripts.data.loaders import Splits, create_splits
from zoo.scripts.data.scenes.dataset import collate, scenes_of
from zoo.scripts.data.scenes.splits import targets_of
from zoo.scripts.data.scenes.transforms import NO_CLASS
from zoo.scripts.storage import checkpoint
from zoo.scripts.storage.provenance import provenance
from zoo.scripts.tasks import create as tasks
from zoo.scripts.training import engine, variants
from zoo.scripts.training.processes import create_accelerator

RESULTS = Path(__file__).parent / "results" / "training.json"
WARM_UP = 5  # steps
LIMIT = 1.15


def bare_steps(model: nn.Module, splits: Splits, config: Train) -> Iterator[None]:
    """Train as a script without a library would, a step at a time."""
    scenes: Any = scenes_of(splits.train.dataset)
    loader = DataLoader(
        scenes, config.data.batch_size, shuffle=True, drop_last=True, collate_fn=collate,
        num_workers=splits.train.num_workers, persistent_workers=splits.train.num_workers > 0,
    )  # fmt: skip
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay)
    while True:
        for images, targets in loader:
            images = images.to(memory_format=torch.channels_last)
            loss = _loss(model, images, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            yield


def _loss(model: nn.Module, images: Tensor, targets: Any) -> Tensor:
    if isinstance(targets, Tensor):
        return F.cross_entropy(model(images), targets, ignore_index=NO_CLASS)
    return torch.stack(list(model(images, targets).values())).sum()


class Memory:
    """The peak of resident memory since this object was made, above what there was then."""

    def __init__(self) -> None:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
        self.before = _resident("VmRSS")

    def peak(self) -> float:
        """Return MiB."""
        return (_resident("VmHWM") - self.before) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])  # KiB


class Timed:
    """A task that measures the engine's steps, and takes a bare one after each of them.

    Args:
        task: The engine's own.
        bare: Takes a bare step; None for none.
    """

    def __init__(self, task: Any, bare: Iterator[None] | None) -> None:
        self.task, self.bare, self.since = task, bare, 0.0
        self.memory: Memory | None = None
        self.peak = 0.0  # MiB, before the evaluation
        self.seconds: dict[str, list[float]] = {"engine": [], "bare": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def prepare(self, images: Tensor, targets: Any) -> Any:
        """Note the time since the last call, which is a whole step; called at the beginning of each."""
        now = time.process_time()
        self.memory = self.memory or Memory()
        self.peak = self.memory.peak()
        if self.since:
            self.seconds["engine"].append(now - self.since)
        if self.bare is not None:
            next(self.bare)
            self.seconds["bare"].append(time.process_time() - now)
        self.since = time.process_time()
        return self.task.prepare(images, targets)


def train(config: Train, steps: int, kind: str) -> tuple[dict[str, list[float]], float]:
    """Take steps of one kind, or of both in turn; return the CPU seconds of each, and the peak of memory in MiB."""
    splits = _splits(config, steps)
    task = tasks.create(config, splits)
    recipe = variants.recipe_of("plain", config, splits, task)
    models = []
    for _ in range(2 if kind == "both" else 1):
        torch.manual_seed(0)
        models.append(checkpoint.build(recipe))
    bare = None if kind == "engine" else bare_steps(models[-1], splits, config)
    if bare is not None and kind == "bare":
        memory = Memory()
        for _ in range(steps):
            next(bare)
        return {}, memory.peak()
    timed = Timed(task, bare)
    model = models[0].to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        engine.fit(model, splits, timed, config, create_accelerator(config), Path(folder), recipe)  # type: ignore[arg-type]
    return timed.seconds, timed.peak


def _splits(config: Train, steps: int) -> Splits:
    """Return as many training batches as steps, since an epoch ends with an evaluation, and one to evaluate."""
    cfg = timm.get_pretrained_cfg(config.model.name)
    transform = resolve_data_config(pretrained_cfg={} if cfg is None else cfg.to_dict())
    config.data.max_batches = 1
    evaluate = create_splits(config.data, transform, config.seed, targets_of(config.head.name)).evaluate
    config.data.max_batches = steps
    splits = create_splits(config.data, transform, config.seed, targets_of(config.head.name))
    if len(splits.train) < steps:
        raise SystemExit(f"the data have {len(splits.train)} batches, got --steps {steps}")
    return splits._replace(evaluate=evaluate)


def peak(arguments: argparse.Namespace, kind: str) -> float:
    """Return the peak of memory in MiB of a process that takes only steps of one kind."""
    command = [sys.executable, __file__, arguments.name, *arguments.overrides, "--steps", "10", "--alone", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--alone", choices=("engine", "bare"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quick = ("variants=[plain]", "report=false", "optim.epochs=1", "optim.warmup_epochs=0", "device=cpu")
    config = compose_train(*arguments.overrides, *quick)
    if arguments.alone:
        print(train(config, arguments.steps, arguments.alone)[1])
        return
    if arguments.steps <= WARM_UP + 1:
        parser.error(f"expected --steps above {WARM_UP + 1}, since {WARM_UP} warm up, got {arguments.steps}")
    seconds, _ = train(config, arguments.steps, "both")
    medians = {kind: statistics.median(times[WARM_UP:]) for kind, times in seconds.items()}
    memory = {kind: round(peak(arguments, kind)) for kind in medians}
    ratio, of_memory = medians["engine"] / medians["bare"], memory["engine"] / memory["bare"]
    found = {
        **provenance("python benchmarks/training.py"),
        "threads": torch.get_num_threads(),
        "cpu_seconds_of_a_step": {kind: round(value, 4) for kind, value in medians.items()},
        "ratio": round(ratio, 3),
        "peak_mib": memory,
        "ratio_of_memory": round(of_memory, 3),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps({**results, arguments.name: found}, indent=1) + "\n")
    print(f"{arguments.name}: CPU time {ratio:.2f} x, memory {of_memory:.2f} x of the bare loop, at most {LIMIT}")


if __name__ == "__main__":
    main()
