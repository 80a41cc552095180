"""--help: every option and every preset has a meaning, and the values are those of the command line."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from zoo.scripts.config import command, options, schema
from zoo.scripts.training.objective import objective

GROUPS = ("model", "dcn", "data", "optim", "task", "head", "experiment")
PARTS = (schema.Model, schema.Task, schema.Head, schema.Data, schema.Optim, schema.DCN, schema.InspectedData)


@pytest.mark.parametrize("described", [*command._CONFIGS, *PARTS], ids=lambda one: one.__name__)
def test_every_option_has_a_meaning(described: type) -> None:
    meanings = options.option_meanings(described)
    groups = {"task", "head", "model", "dcn", "data", "optim"} if described in command._CONFIGS else set()
    assert [name for name, meaning in meanings.items() if not meaning and name not in groups] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_has_a_meaning(group: str) -> None:
    meanings = options.preset_meanings(group)
    assert meanings
    assert all(meanings.values())


def test_the_help_shows_values_meanings_and_presets() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo.scripts.train", "--help", "model=resnet50", "optim.lr=0.5"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "optim.lr=0.5 highest learning rate of the schedule" in lines
    assert "model.name=resnet50 of timm, such as resnet50" in lines
    assert "seed=0 of weights, order and augmentations" in lines
    assert "v1 DCNv1: offsets without a mask." in lines


def test_a_search_gets_the_best_score_of_the_deformable_network(tmp_path: Path) -> None:
    assert objective(tmp_path) is None
    for name, scores in (("plain", (90, 80)), ("dcn", (30, 50.5, 40))):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "eval/loss", "eval/top1"])
            writer.writeheader()
            writer.writerows({"epoch": i, "eval/loss": 1, "eval/top1": s} for i, s in enumerate(scores))
    assert objective(tmp_path) == 50.5
