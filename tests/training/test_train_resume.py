"""dcn-train: nothing is lost, however a run ends."""

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from zoo.scripts.config.command import compose_train
from zoo.scripts.storage import checkpoint, files
from zoo.scripts.training import metric_log, resume, state
from zoo.scripts.training.run import run

pytestmark = pytest.mark.slow

QUICK = [
    "data.max_batches=8", "data.batch_size=50", "data.eval_copies=1", "optim.epochs=3", "optim.warmup_epochs=1",
    "variants=[dcn]", "report=false", "device=cpu", "checkpoint_every=3", "optim.ema=0.9", "optim.mixup=0.2",
    "+model.kwargs.drop_rate=0.1", "optim.offset_lr_scale=1",
]  # fmt: skip


def curve(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of every epoch, except the time."""
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


def start(folder: Path, *overrides: str, group: int | None = None) -> subprocess.Popen[str]:
    """Start the command, with 0 in a process group of its own, and wait for its first training state."""
    command = [sys.executable, "-m", "zoo.scripts.train", *QUICK, *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=group
    )
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
    half, users = killed / "dcn" / "state.pt.0123abcd.tmp", killed / "mine.tmp"
    half.write_bytes(b"half")  # as if it had been writing
    users.write_text("a file of the user's")
    run(compose_train(*QUICK, "resume=auto"), tmp_path / "new", [killed])
    assert not (tmp_path / "new").exists()
    assert not half.exists()
    assert users.read_text() == "a file of the user's"
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


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_training(tmp_path: Path) -> None:
    """``timeout``, launchers and terminals signal a group: a worker that died of it would take the step with it."""
    for i in range(64):
        path = tmp_path / "data" / ("validation" if i % 8 == 0 else "train") / str(i // 8 % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (4 * i, 0, 0)).save(path)
    overrides = [
        "data=folder", f"data.root={tmp_path / 'data'}", "data.img_size=32", "data.batch_size=2", "data.workers=1",
        "checkpoint_every=1", "optim.epochs=500", "trackers=[]",
    ]  # fmt: skip
    process = start(tmp_path / "run", *overrides, group=0)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "SIGTERM: stopped at epoch" in errors
    assert "Traceback" not in errors


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


@pytest.mark.parametrize("resumed", [["resume=auto"], []], ids=["auto", "new"])
def test_a_run_is_never_replaced_by_another(tmp_path: Path, uninterrupted: Path, resumed: list[str]) -> None:
    before = {path: path.read_bytes() for path in uninterrupted.glob("**/*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"holds a run \(its optim\.lr was 0\.003 and is 0\.2\): set resume=/.*delete"
    ):
        run(compose_train(*QUICK, "optim.lr=0.2", *resumed), uninterrupted, [uninterrupted])
    assert {path: path.read_bytes() for path in uninterrupted.glob("**/*") if path.is_file()} == before


def test_the_same_command_again_is_told_to_resume(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds a run: set resume=auto to go on with it, take another hydra\.run\.dir"
    ):
        run(compose_train(*QUICK), uninterrupted)


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
    assert "the previous file is intact" in str(caught.value.__notes__)
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
    # Its config is unchanged: resume=auto finds it again.
    assert resume.choose(compose_train(*QUICK, "resume=auto"), tmp_path, [uninterrupted]) == uninterrupted


def test_an_epoch_of_another_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(tmp_path, monkeypatch, save=1)
    with pytest.raises(ValueError, match="epoch 1, step 3 of 8, and now an epoch has 6"):
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


def test_a_flipped_bit_of_a_state_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.load ignores checksums: it accepted 171 of 180 damaged files."""
    crash(tmp_path, monkeypatch, save=1)
    path = tmp_path / "dcn" / "state.pt"
    whole, expected = path.read_bytes(), state._read(path)
    generator = random.Random(0)
    for _ in range(100):
        damaged, at = bytearray(whole), generator.randrange(len(whole))
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with suppress(ValueError):
            # Otherwise the bit is not part of the content, such as the time of a part or its padding.
            assert same(state._read(path), expected), at
    at = whole.index(state._read(write(path, whole))["model"]["conv1.weight"].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"state\.pt is no training state .*the check sum of .* is wrong|Bad CRC"):
        run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize(
    "content",
    [
        {"model": {}, "optimizer": {}},
        {"state_dict": {}},
        [1, 2],
        torch.zeros(2),
        {"position": {}, "model": {}, "optimizer": {}, "ema": {}, "scaler": None},
        {"position": 1, "model": {}, "optimizer": {}, "ema": {}, "scaler": None},
    ],
)
def test_a_foreign_state_is_named(content: Any, tmp_path: Path, uninterrupted: Path) -> None:
    (tmp_path / "dcn").mkdir()
    (tmp_path / "config.json").write_bytes((uninterrupted / "config.json").read_bytes())
    torch.save(content, tmp_path / "dcn" / "state.pt")
    with pytest.raises(ValueError, match=r"dcn/state\.pt is (no training state|the state of another version)"):
        run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")


@pytest.mark.parametrize("content", [b"", b'{"optim.lr": ', b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_config_of_a_neighbour_is_passed_over_and_named(
    content: bytes, tmp_path: Path, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = tmp_path / "neighbour"
    neighbour.mkdir()
    (neighbour / "config.json").write_bytes(content)
    config = compose_train(*QUICK, "resume=auto")
    assert resume.choose(config, tmp_path / "new", [neighbour, uninterrupted]) == uninterrupted
    assert f"{neighbour / 'config.json'}" in caplog.text
    config.resume = str(neighbour)
    with pytest.raises(ValueError, match=r"neighbour/config\.json (can't be read|is no config)"):
        resume.choose(config, tmp_path / "new", [])


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def start_another(*args: Any) -> None:
        if not refused:
            with pytest.raises(ValueError, match=r"is in use by process \d+ on .* take another folder") as error:
                run(compose_train(*QUICK, f"resume={tmp_path}"), tmp_path / "new")
            refused.append(error)
        save(*args)

    save = state.save
    monkeypatch.setattr(files, "PATIENCE", 0)
    monkeypatch.setattr(state, "save", start_another)
    run(compose_train(*QUICK), tmp_path)
    assert refused
    assert_same(tmp_path, uninterrupted)


def test_half_a_row_of_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n0,1.5\n1,1.0\n,\n")
    metric_log.drop_from(path, 1)
    assert path.read_text().split() == ["epoch,loss", "0,1.5"]


def test_a_second_interruption_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is a KeyboardInterrupt without a message."""
    script = (
        "import sys\nfrom scripts import train\n"
        "def run(*_): raise KeyboardInterrupt\n"
        f"train.run = run\nsys.argv = ['dcn-train', 'hydra.run.dir={tmp_path}']\ntrain.main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 130
    assert done.stderr.strip() == "interrupted; the same command with resume=auto goes on"


def test_best_is_the_best(uninterrupted: Path) -> None:
    tops = [row["eval/top1"] for row in curve(uninterrupted)]
    same = tops.index(max(tops)) == len(tops) - 1
    last, best = (load_file(uninterrupted / "dcn" / f"{name}.safetensors") for name in ("last", "best"))
    assert all(torch.equal(last[key], best[key]) for key in last) == same
    checkpoint.load(uninterrupted / "dcn" / "best.safetensors")
