"""dcn-train task=detection in two processes, and after a SIGKILL: the same losses as one process without."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scenes import write_voc
from zoo.scripts.config.command import compose_train
from zoo.scripts.training.run import run

pytestmark = pytest.mark.slow
# Without BatchNorm, whose statistics are separate in each process.
SMALL = [
    "task=detection", "data=voc", "data.img_size=64", "data.batch_size=4", "data.workers=0", "head.channels=32",
    "model=timm", "model.name=test_convnext", "+model.kwargs.ls_init_value=1", "optim.opt=sgd", "optim.lr=0.02",
    "optim.epochs=3", "optim.warmup_epochs=0", "optim.clip_grad=1", "trackers=[]", "variants=[dcn]",
    "report=false", "device=cpu",
]  # fmt: skip
TRAIN = [sys.executable, "-m", "zoo.scripts.train"]
TORCHRUN = [
    *(
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "zoo.scripts.train",
    )
]


def recipe(root: Path, head: str) -> list[str]:
    return [*SMALL, f"head={head}", "head.channels=32", f"data.root={root}"]


def start(command: list[str], *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([*command, *overrides], stderr=subprocess.PIPE, text=True, env=environment)


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((folder / "dcn" / "metrics.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_voc(folder, train=12, evaluate=3)  # 3 images are no multiple of 2 processes
    return folder


@pytest.mark.parametrize("head", ["fcos", "retinanet"])
def test_two_processes_give_the_losses_of_one(head: str, root: Path, tmp_path: Path) -> None:
    run(compose_train(*recipe(root, head)), tmp_path / "one")
    process = start(TORCHRUN, *recipe(root, head), f"hydra.run.dir={tmp_path / 'two'}")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    found, expected = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(found) == 3
    for row, wanted in zip(found, expected, strict=True):
        assert row["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-4)
        assert row["train/offset"] == pytest.approx(wanted["train/offset"], rel=1e-2)
        assert row["eval/AP"] == pytest.approx(wanted["eval/AP"], abs=0.5)


def test_killed_and_resumed_a_run_ends_with_the_same_numbers(root: Path, tmp_path: Path) -> None:
    arguments = [*recipe(root, "fcos"), "optim.ema=0.5", "checkpoint_every=1"]
    run(compose_train(*arguments), tmp_path / "whole")
    process = start(TRAIN, *arguments, f"hydra.run.dir={tmp_path / 'killed'}")
    state = tmp_path / "killed" / "dcn" / "state.pt"
    while not state.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(compose_train(*arguments, f"resume={tmp_path / 'killed'}"), tmp_path / "log")
    found, expected = metrics(tmp_path / "killed"), metrics(tmp_path / "whole")
    assert len(found) == 3
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5, nan_ok=True)
