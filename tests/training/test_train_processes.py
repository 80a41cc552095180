"""dcn-train in several processes: the same losses with the same batch, DDP, FSDP2's pieces, sweeps."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupted import after_first_state
from safetensors.torch import load_file
from torch.testing import assert_close
from zoo.scripts.config.command import compose_train
from zoo.scripts.training.run import run

# Without BatchNorm, whose statistics are separate in each process.
SMALL = [
    "model=timm", "model.name=test_convnext", "+model.kwargs.ls_init_value=1", "data.img_size=32",
    "data.max_batches=5", "data.batch_size=16", "data.eval_copies=1", "optim.opt=sgd", "optim.lr=0.05",
    "optim.epochs=2", "optim.warmup_epochs=0", "optim.offset_lr_scale=300", "optim.offset_l2=1e-3",
    "optim.clip_grad=1", "variants=[dcn]", "report=false", "device=cpu",
]  # fmt: skip


pytestmark = pytest.mark.slow


def metrics(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "dcn" / "metrics.csv").read_text().splitlines()))


def losses(folder: Path) -> list[float]:
    return [float(row[key]) for row in metrics(folder) for key in ("train/loss", "eval/loss")]


def offsets(folder: Path) -> list[float]:
    return [float(row["train/offset"]) for row in metrics(folder)]


def launch(launcher: list[str], *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, *SMALL, *overrides]
    # Scripts elsewhere import what the tests import.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(compose_train(*SMALL), folder)
    return folder


def assert_same(folder: Path, alone: Path) -> None:
    assert len(losses(folder)) == 4
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    assert offsets(folder) == pytest.approx(offsets(alone), rel=1e-2)
    weights, expected = (load_file(f / "dcn" / "last.safetensors") for f in (folder, alone))
    assert_close(weights, expected, rtol=1e-3, atol=1e-4)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path, alone: Path) -> None:
    device = "cpu" if torch.accelerator.is_available() else "auto"  # the default
    done = launch([*TORCHRUN, "-m", "zoo.scripts.train"], f"hydra.run.dir={tmp_path}", f"device={device}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[INFO] - dcn: top-1") == 1  # one process speaks
    assert_same(tmp_path, alone)
    assert losses(tmp_path) != losses(alone), "each process trained on the whole batch"


def crash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run to the first training state, in the middle of the first epoch."""
    with after_first_state(monkeypatch):
        run(compose_train(*SMALL, "checkpoint_every=3"), folder)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(tmp_path, monkeypatch)
    overrides = [f"resume={tmp_path}", "optim.accumulate=2", f"hydra.run.dir={tmp_path / 'log'}"]
    done = launch([*TORCHRUN, "-m", "zoo.scripts.train"], *overrides)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, alone)


# accelerate allows FSDP2 only on GPUs, by device name; its code runs on CPUs too.
SHARDED = """
import sys
from pathlib import Path

from accelerate import DistributedType, FullyShardedDataParallelPlugin
from zoo.scripts.training import state, run
from zoo.scripts.config.command import compose_train


def sharded(config):
    accelerator = create(config)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator.state.distributed_type = DistributedType.FSDP
    assert accelerator.is_fsdp2
    return accelerator


def save_and_crash(*args):
    save(*args)
    raise KeyboardInterrupt


create, run.create_accelerator = run.create_accelerator, sharded
save, state.save = state.save, save_and_crash
config, folder = compose_train(*sys.argv[2:]), Path(sys.argv[1])
try:
    run.run(config, folder)
except KeyboardInterrupt:
    state.save = save
run.run(config, folder)
"""


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_pieces_and_pieces_go_on(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(tmp_path, monkeypatch)
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = launch([*TORCHRUN, str(script), str(tmp_path)], f"resume={tmp_path}", "checkpoint_every=4")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path, alone)


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path, alone: Path) -> None:
    launcher = ["accelerate.commands.launch", "--cpu", "--mixed_precision=bf16", "-m", "zoo.scripts.train"]
    done = launch(launcher, "optim.epochs=1", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[0] == pytest.approx(losses(alone)[0], rel=0.05)
    assert losses(tmp_path)[0] != pytest.approx(losses(alone)[0], rel=1e-4)


@pytest.mark.slow
def test_an_error_is_one_line_of_one_process(tmp_path: Path) -> None:
    done = launch([*TORCHRUN, "-m", "zoo.scripts.train"], "data.batch_size=15", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.count("error: expected data.batch_size=15") == 1
    assert "scripts/training/engine.py" not in done.stderr


def test_accumulated_parts_give_the_losses_of_the_whole(tmp_path: Path, alone: Path) -> None:
    run(compose_train(*SMALL, "optim.accumulate=4"), tmp_path)
    assert_same(tmp_path, alone)


def test_a_sweep_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.scripts import train

    monkeypatch.setattr(sys, "argv", ["dcn-train", "-m", "seed=0,1"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="without -m"):
        train.main()


@pytest.mark.slow
def test_a_sweep_runs_in_parallel_by_joblib(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "zoo.scripts.train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        "seed=0,1", *SMALL, "optim.epochs=1", f"hydra.sweep.dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len({tuple(losses(tmp_path / str(job))) for job in (0, 1)}) == 2
