"""Detection of blood cells and segmentation of nuclei, from scratch; docs/study.md has the protocol."""

import csv
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import study_nuclei
import study_scenes_report
import torch
from study_rows import COMMAND, RESULTS, RUNS, append, channels_with, config_of, has, rows, train
from zoo.scripts.inspect import measured
from zoo.scripts.inspect.subject import of_checkpoint
from zoo.scripts.storage import checkpoint, markdown
from zoo.scripts.storage.provenance import provenance
from zoo.scripts.tasks import create

DOCS = Path(__file__).parent.parent / "docs"
LIKE = "both"  # the variant whose parameters and time the wider and the longer plain network have
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "plain": ("plain", []),
    "head": ("dcn", ["dcn.parts=[{head}]"]),
    "encoder": ("dcn", ["dcn.parts=[backbone]"]),
    "both": ("dcn", ["dcn.parts=[backbone,{head}]"]),
    "both, rate 1": ("dcn", ["dcn.parts=[backbone,{head}]", "optim.offset_lr_scale=1"]),
    "wider": ("plain", []),  # channels so that it has the parameters of LIKE
    "longer": ("plain", []),  # epochs so that it trains for the CPU time of LIKE
}
CONVERGED = {  # after VARIANTS, where a schedule that converges is asked for
    "both, longer": VARIANTS[LIKE],  # the epochs of longer
    "longest": ("plain", []),  # epochs so that it trains for the CPU time of "both, longer"
}
LONGER = {"longer": 1, "both, longer": 1, "longest": 2}  # times the price of LIKE, to this power


@dataclass(frozen=True)
class Scenes:
    """A data set with its network and recipe.

    Attributes:
        name: Of the rows and of the table.
        classes: How many.
        head: The part beside the backbone that becomes deformable.
        overrides: Of ``dcn-train``, with the recipe that was best for the plain network.
        epochs: Epochs of every variant but the longer one.
        test: The split that is read once, by the weights of the last epoch.
        steps: Of an epoch.
        metrics: What the tables and the curves show.
        variants: What is trained: name of ``dcn-train`` and overrides by name of the table.
        prepare: Makes the folder that ``dcn-train`` reads from the folder that the user gives.
    """

    name: str
    classes: int
    head: str
    overrides: tuple[str, ...]
    epochs: int
    test: str
    steps: int
    metrics: tuple[str, ...]
    variants: Mapping[str, tuple[str, list[str]]] = field(default_factory=lambda: VARIANTS, hash=False)
    prepare: Callable[[Path], Path] = Path


CELLS = Scenes(
    name="cells",
    classes=3,
    head="head",
    overrides=(
        *("experiment=detect_small", "data.img_size=192", "data.batch_size=4", "data.workers=0"),
        *("optim.lr=1e-3", "optim.warmup_epochs=1", "trackers=[]"),
    ),
    epochs=30,
    test="test",
    steps=51,
    metrics=("AP", "AP50", "AP75"),
)
NUCLEI = Scenes(
    name="nuclei",
    classes=2,
    head="decoder",
    overrides=(
        *("task=segmentation", "data=masks", "data.classes=[background,nucleus]", "data.img_size=160"),
        *("data.batch_size=8", "data.workers=0", "optim.lr=2e-3", "optim.warmup_epochs=1", "trackers=[]"),
    ),
    epochs=30,
    test="test",
    steps=43,
    metrics=("IoU/nucleus", "boundary/IoU/nucleus"),
    variants=VARIANTS | CONVERGED,
    prepare=study_nuclei.prepare,
)
STUDIES = {one.name: one for one in (CELLS, NUCLEI)}


def study(scenes: Scenes, root: Path, seeds: list[int], only: list[str] | None = None) -> None:
    """Make the runs that have no row yet; all variants of a seed, or these only, before the next seed."""
    path = RESULTS / f"study-{scenes.name}.jsonl"
    scenes = replace(scenes, overrides=(*scenes.overrides, f"data.root={scenes.prepare(root).resolve()}"))
    seconds = calibration(path, scenes)
    for seed in seeds:
        for variant in only or scenes.variants:
            key = {"data": scenes.name, "variant": variant, "seed": seed}
            if has(path, key):
                continue
            name = scenes.variants[variant][0]
            epochs = round(scenes.epochs * (seconds[LIKE] / seconds["plain"]) ** LONGER.get(variant, 0))
            extra = [*of_variant(scenes, variant), f"seed={seed}", f"optim.epochs={epochs}"]
            folder = RUNS / f"{scenes.name}-{variant}-{seed}".replace(", ", "-").replace(" ", "")
            append(path, {**key, **one_run(scenes, name, [*scenes.overrides, *extra], folder), "overrides": extra})


def one_run(scenes: Scenes, name: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train, then read the test split with the weights of the last epoch."""
    config, seconds = train(name, overrides, folder)
    weights = folder / name / "last.safetensors"
    subject = of_checkpoint(
        weights, name, replace(config.data, eval_split=scenes.test), torch.device("cpu"), config.seed
    )
    task = create.of_recipe(checkpoint.read_recipe(weights))
    assert task is not None
    model = subject.model.to(memory_format=torch.channels_last)
    found = measured.measure(model, subject.loader, task, torch.device("cpu")).metrics
    with (folder / name / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))
    return {
        "test": {key: None if math.isnan(value) else round(value, 3) for key, value in found.items()},
        "curve": {one: [round(float(epoch[f"eval/{one}"]), 2) for epoch in epochs] for one in scenes.metrics},
        "loss": [round(float(epoch["train/loss"]), 4) for epoch in epochs],
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "epochs": config.optim.epochs,
        "cpu_seconds": seconds,
    }


def write() -> None:
    """Put the tables of the results that are there into their blocks of ``docs/study.md``, and draw the curves."""
    for scenes in STUDIES.values():
        runs, seconds = study_scenes_report.read(RESULTS / f"study-{scenes.name}.jsonl")
        if "plain" in runs:
            table = study_scenes_report.table(runs, seconds, scenes.metrics)
            markdown.replace_block(DOCS / "study.md", scenes.name, table)
            picture = DOCS / "img" / f"study-{scenes.name}.png"
            study_scenes_report.draw(runs, seconds, scenes.metrics, scenes.steps, picture)


def calibration(path: Path, scenes: Scenes, rounds: int = 3) -> dict[str, float]:
    """Return the CPU seconds of an epoch of each variant; measured once, in turns, then read from the rows."""
    for row in rows(path):
        if "epoch_cpu_seconds" in row:
            return row["epoch_cpu_seconds"]
    timed = [variant for variant in VARIANTS if variant not in ("longer", "both, rate 1")]
    times: dict[str, list[float]] = {variant: [] for variant in timed}
    for i in range(rounds):
        for variant in timed:
            overrides = [*scenes.overrides, *of_variant(scenes, variant), "optim.epochs=1", "optim.warmup_epochs=0"]
            times[variant].append(train(VARIANTS[variant][0], overrides, RUNS / f"calibrate-{i}")[1])
    found = {variant: statistics.median(values) for variant, values in times.items()}
    stamp = {**provenance(""), "command": f"{COMMAND} {scenes.name} --root FOLDER"}
    append(path, {"epoch_cpu_seconds": found, "rounds": times, **stamp})
    return found


def of_variant(scenes: Scenes, variant: str) -> list[str]:
    """Return the overrides of a variant."""
    if variant == "wider":
        return [f"model.kwargs.channels={matched(scenes)}"]
    return [one.format(head=scenes.head) for one in scenes.variants[variant][1]]


@cache
def matched(scenes: Scenes) -> list[int]:
    """Return the backbone's channels that give the plain network the parameters of ``LIKE``."""
    target = parameters(scenes, "dcn", of_variant(scenes, LIKE))
    return channels_with(target, lambda c: parameters(scenes, "plain", [f"model.kwargs.channels={c}"]))


def parameters(scenes: Scenes, name: str, overrides: list[str]) -> int:
    """Count the parameters of a variant."""
    config = config_of([*scenes.overrides, *overrides])
    network = {"model_name": config.model.name, "num_classes": scenes.classes, "in_chans": config.data.in_chans}
    recipe = {
        "create_model": {**network, **config.model.kwargs},
        "head": asdict(config.head),
        "dcn": asdict(config.dcn) if name == "dcn" else None,
    }
    return sum(p.numel() for p in checkpoint.build(recipe).parameters())
