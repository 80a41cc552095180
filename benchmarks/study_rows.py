"""What every part of the study shares: a training by ``dcn-train``, and the file of finished runs."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from zoo.scripts.config.command import register
from zoo.scripts.config.schema import Train
from zoo.scripts.training.run import run

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs/study")
COMMAND = "python benchmarks/study.py"
CHANNELS = (16, 32, 64, 128)  # of conf/model/resnet_small.yaml


def config_of(overrides: list[str]) -> Train:
    """Return the config of ``dcn-train`` with these overrides."""
    register()
    with initialize_config_module("zoo.conf", version_base="1.3"):
        config: Train = OmegaConf.to_object(compose("train", overrides=overrides))
    return config


def train(variant: str, overrides: list[str], folder: Path) -> tuple[Train, float]:
    """Train one network into ``folder``; return the config and the CPU seconds of it all, evaluations included."""
    config = config_of([*overrides, f"variants=[{variant}]", "report=false", "device=cpu"])
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted, which has no row
    start = time.process_time()
    run(config, folder)
    return config, round(time.process_time() - start, 1)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file, none where there is no file."""
    return iter(map(json.loads, path.read_text().splitlines()) if path.exists() else ())


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a row; a whole one or, where the process dies, none."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def has(path: Path, key: dict[str, Any]) -> bool:
    """Return whether a run has its row."""
    return any(key.items() <= row.items() for row in rows(path))


def channels_with(target: int, parameters: Callable[[list[int]], int]) -> list[int]:
    """Return the channels of the small ResNet, up to 1.6 times as wide, whose parameters come closest to a number.

    Args:
        target: The number.
        parameters: Counts those of the network with these channels.
    """
    candidates = {tuple(round(c * (1 + i / 100)) for c in CHANNELS) for i in range(61)}
    return list(min(candidates, key=lambda channels: abs(parameters(list(channels)) - target)))
