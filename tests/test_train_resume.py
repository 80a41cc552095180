"""dcn-train: nothing is lost, whatever ends a run."""

import csv
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts import checkpoint, state
from scripts.config import compose_train
from scripts.train import run

QUICK = [
    "data.max_batches=8", "data.batch_size=50", "data.eval_copies=1", "optim.epochs=3", "optim.warmup_epochs=1",
    "variants=[dcn]", "report=false", "device=cpu", "checkpoint_every=3", "optim.ema=0.9", "optim.mixup=0.2",
    "+model.kwargs.drop_rate=0.1", "optim.offset_lr_scale=1",
]  # fmt: skip


def curve(folder: Path) -> list[dict[str, float]]:
    """The metrics of every epoch, but for the time."""
    rows = csv.DictReader((folder / "dcn" / "metrics.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in rows]


def position(folder: Path) -> state.Position:
    return state.Position(**torch.load(folder / "dcn" / "state.pt", weights_only=True)["position"])


def assert_same(folder: Path, other: Path) -> None:
    assert len(curve(folder)) == 3
    for row, expected in zip(curve(folder), curve(other), strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    for name in ("last", "best"):
        weights, expected = (load_file(f / "dcn" / f"{name}.safetensors") for f in (folder, other))
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(compose_train(*QUICK), folder)
    return folder


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start the command and wait for its first training state."""
    command = [sys.executable, "-m", "scripts.train", *QUICK, *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(12_000):
        if (folder / "dcn" / "state.pt").exists():
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    raise TimeoutError(process.communicate())


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_it_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Path
) -> None:
    killed = tmp_path / "killed"
    process = start(killed)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < position(killed).step < 8
    (killed / "dcn" / "state.pt.tmp").write_bytes(b"half")  # as if it had been writing
    run(compose_train(*QUICK, "resume=auto"), tmp_path / "new", [killed])
    assert not (tmp_path / "new").exists()
    assert_same(killed, uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_and_exits(tmp_path: Path, uninterrupted: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "checkpoint_every=1")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: stopped at epoch" in errors
    assert "resume=auto goes on" in errors
    run(compose_train(*QUICK, f"resume={folder}"), tmp_path / "new")
    assert_same(folder, uninterrupted)


class Crash(Exception):
    pass


def crash(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, save: int = 2) -> None:
    """Run until the second training state is written, and no further."""
    saves = []

    def save_and_crash(*args: object) -> None:
        original(*args)
        saves.append(args)
        if len(saves) == save:
            raise Crash

    original = state.save
    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save_and_crash)
        with pytest.raises(Crash):
            run(compose_train(*QUICK, *overrides), folder)


@pytest.mark.parametrize("save", [1, 3, 5])  # in the first epoch, at its end before it is evaluated, in the second
def test_every_state_leads_to_the_same_end(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, save: int
) -> None:
    crash(tmp_path, monkeypatch, save=save)
    run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")
    assert_same(tmp_path, uninterrupted)


def test_a_finished_run_is_evaluated_again(tmp_path: Path, uninterrupted: Path) -> None:
    before = curve(uninterrupted)
    run(compose_train(*QUICK, "resume=auto"), tmp_path / "new", [uninterrupted])
    assert curve(uninterrupted) == before
    assert not (tmp_path / "new").exists()


def test_auto_starts_anew_where_no_run_has_this_config(
    tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (uninterrupted / "dcn" / "state.pt").read_bytes()
    with caplog.at_level("INFO"):
        run(compose_train(*QUICK, "optim.epochs=1", "resume=auto"), tmp_path / "new", [uninterrupted])
    assert "no run with this config" in caplog.text
    assert len(curve(tmp_path / "new")) == 1
    assert (uninterrupted / "dcn" / "state.pt").read_bytes() == before


def test_a_full_disk_leaves_the_last_state_whole(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(tmp_path, monkeypatch)
    path = tmp_path / "dcn" / "state.pt"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # no file may grow beyond that
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "what stood there before is whole" in str(caught.value.__notes__)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("dcn/*.tmp"))
    run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")
    assert_same(tmp_path, uninterrupted)


def test_what_differs_from_the_resumed_run_is_named(
    tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="the state of another network"):
        run(compose_train(*QUICK, "dcn.modulated=false", f"resume={uninterrupted}"), tmp_path)
    assert "dcn.modulated was True and is False" in caplog.text


def test_an_epoch_of_another_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(tmp_path, monkeypatch, save=1)
    with pytest.raises(ValueError, match="epoch 0, step 3 of 8, and now an epoch has 6"):
        run(compose_train(*QUICK, "data.max_batches=6", f"resume={tmp_path}"), tmp_path / "new")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="got resume="):
        run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")


def test_a_damaged_state_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(tmp_path, monkeypatch, save=1)
    path = tmp_path / "dcn" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is no training state"):
        run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")


def test_best_is_the_best(uninterrupted: Path) -> None:
    tops = [row["eval/top1"] for row in curve(uninterrupted)]
    same = tops.index(max(tops)) == len(tops) - 1
    last, best = (load_file(uninterrupted / "dcn" / f"{name}.safetensors") for name in ("last", "best"))
    assert all(torch.equal(last[key], best[key]) for key in last) == same
    checkpoint.load(uninterrupted / "dcn" / "best.safetensors")
