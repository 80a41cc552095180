"""dcn-export with errors: mistakes, hanging runtimes, kills; and the files that are left."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy import progress, runtimes, verify
from zoo.scripts.deploy.run import run
from zoo.scripts.deploy.targets import TARGETS
from zoo.scripts.deploy.workplace import publish, workplace
from zoo.scripts.storage import checkpoint

import zoo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
REPOSITORY = Path(__file__).parents[2]
RECIPE = {"create_model": {"model_name": "test_resnet", "num_classes": 5}, "dcn": {"stages": (4,)}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "small.safetensors"
    checkpoint.save(checkpoint.build(RECIPE), RECIPE, path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "onx"}, "expected target=all, one of compile"),
        ({"dynamic": "sizes"}, "expected dynamic to be one of none, batch, size"),
        ({"dtype": "fp16"}, "expected dtype to be one of float32"),
        ({"size": [1, 2, 3]}, "expected size="),
        ({"size": [0]}, r"got size=\[0\]"),
        ({"checkpoint": None, "model": "vit_tiny_patch16_224"}, r"doesn't take images of .*; set size="),
        ({"model": "resnet50_dcn"}, "expected checkpoint=FILE"),
        ({"checkpoint": None, "model": "resnet50_dnc"}, "resnet50_dcn"),
        ({"sampling": "bags"}, "expected sampling to be one of grid_sample, gather"),
        ({"sampling": "gather"}, "sampling=gather applies only to decomposed files: set decompose=true"),
        ({"batch": 0}, "expected batch of 1 or more, got batch=0"),
        ({"rounds": 0}, "expected rounds of 1 or more"),
        ({"max_images": 0}, "expected max_images of 1 or more"),
        ({"threads": -1}, "expected threads of 1 or more"),
        ({"limit_minutes": 0}, "expected limit_minutes above 0"),
        ({"checkpoint": "cut.safetensors"}, "expected a safetensors file .* got checkpoint=cut.safetensors"),
        ({"checkpoint": "weights.pth"}, "expected a safetensors file .* got checkpoint=weights.pth"),
        ({"checkpoint": "other.safetensors"}, "expected a safetensors file .* no recipe"),
        ({"checkpoint": None, "model": "cut"}, "expected a folder that zoo.save wrote, .* got model=cut"),
        ({"folder": "a_file"}, "can't write into folder=a_file: File exists"),
        ({"folder": "a_file/below"}, "can't write into folder=a_file/below: Not a directory"),
        ({"folder": "/proc/exports"}, "can't write into folder=/proc/exports"),
        ({"markdown": "a_file"}, "expected the lines '<!-- targets -->'"),
    ],
)
def test_mistakes_name_the_mend(
    changes: dict, message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = trained.read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.zeros(1)}, "weights.pth")
    checkpoint.save_file({"weight": torch.zeros(1)}, "other.safetensors")
    zoo.save(zoo.inject_(timm.create_model("test_resnet")), "cut")
    Path("cut/model.safetensors").write_bytes(whole[:100])
    Path("a_file").write_text("no folder")
    arguments = {"checkpoint": str(trained), "folder": str(tmp_path), "size": [48]} | changes
    with pytest.raises(ValueError, match=message):
        run(Export(**arguments))


def test_the_command_says_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    command = [sys.executable, "-W", "ignore", "-m", "zoo.scripts.export", f"checkpoint={tmp_path}/cut.safetensors"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: expected a safetensors file that dcn-train wrote")
    assert done.stderr.count("\n") == 1


def test_each_file_keeps_its_own_report(trained: Path, tmp_path: Path) -> None:
    for target in ("torchscript", "onnx"):
        arguments = {"checkpoint": str(trained), "folder": str(tmp_path), "size": [48], "plain": False}
        run(Export(**arguments, target=target, rounds=1, threads=1))
    for name, target in (("small.pt", "torchscript"), ("small.onnx", "onnx")):
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert [row["target"] for row in report["rows"]] == ["eager", target]
        assert report["rows"][1]["file"] == str(tmp_path / name)
        assert report["config"]["target"] == target


def test_the_export_of_another_network_is_not_replaced(trained: Path, tmp_path: Path) -> None:
    again, other = (tmp_path / name / "small.safetensors" for name in ("again", "other"))
    for path in (again, other):
        path.parent.mkdir()
        shutil.copy(trained, path)
    arguments = {"folder": str(tmp_path), "size": [48], "plain": False, "rounds": 1, "threads": 1}
    for _ in range(2):  # of the same checkpoint it is
        run(Export(checkpoint=str(again), target="torchscript", **arguments))
    before = (tmp_path / "small.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"small\.pt is the export of checkpoint={again}: set folder=OTHER"):
        run(Export(checkpoint=str(other), target="torchscript", **arguments))
    assert (tmp_path / "small.pt").read_bytes() == before


def test_all_targets_are_those_that_can_have_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {name: TARGETS[name] for name in ("compile", "torchscript", "ncnn")}
    monkeypatch.setattr("zoo.scripts.deploy.run.TARGETS", kept)
    arguments = {"size": [48], "plain": False, "rounds": 1, "threads": 1, "dynamic": "batch"}
    rows = run(Export(checkpoint=str(trained), folder=str(tmp_path), target="all", **arguments))
    assert [(row.target, row.left_out) for row in rows] == [
        ("eager", False), ("torchscript", False), ("compile", True), ("ncnn", True),
    ]  # fmt: skip
    assert rows[2].reason == "compile files have constant sizes: use dynamic=none, got dynamic='batch'"


# The verifying process


def traced(file: Path) -> list[tuple[str, Path]]:
    torch.jit.save(torch.jit.trace(nn.Flatten(), torch.ones(1, 3, 2, 2)), file)
    return [("torchscript", file)]


def test_a_runtime_that_hangs_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(verify.VerificationError, match=r"torchscript was stopped: .*limit_minutes="):
        verify.run(
            traced(tmp_path / "model.pt"),
            [torch.ones(1, 3, 2, 2)],
            library=False,
            threads=1,
            rounds=2**60,
            limit_minutes=0.2,
        )


def test_the_folder_of_the_runner_hides_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Path(shutil.copy(runtimes.__file__, tmp_path))
    (tmp_path / "statistics.py").write_text("raise RuntimeError('not the module of Python')")
    monkeypatch.setattr(runtimes, "__file__", str(runner))
    inputs = [torch.ones(1, 3, 2, 2)]
    done = verify.run(traced(tmp_path / "model.pt"), inputs, library=False, threads=1, rounds=1)
    assert done.outputs[0][0].shape == (1, 12)


# Files that are left


def test_files_that_belong_together_never_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, folder = tmp_path / "new", tmp_path / "folder"
    for where in (place, folder):
        where.mkdir()
        for suffix in (".xml", ".bin"):
            (where / f"model{suffix}").write_text(where.name)
    replace = Path.replace

    def fail_at_the_last(self: Path, target: Path) -> Path:
        if self.suffix == ".xml":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        publish(place, "model.xml", folder)
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == {"model.bin"}
    publish(place, "model.xml", folder)
    assert (folder / "model.xml").read_text() == "new"


HOLD = """
import sys
from pathlib import Path
from zoo.scripts.deploy.workplace import workplace
with workplace(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"holds\n"
        (held,) = tmp_path.iterdir()
        with workplace(tmp_path):
            assert held.is_dir(), "the run goes on"
        other.kill()
        other.wait()
    assert list(tmp_path.iterdir()) == [held]
    with workplace(tmp_path):
        assert not held.exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["eager: timing", "compile: writing"])
def test_sigterm_leaves_nothing_behind(stage: str, trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "zoo.scripts.export", f"checkpoint={trained}", "size=[48]"]
    rounds = 10**9 if stage.startswith("eager") else 1
    command += [f"folder={tmp_path}", "target=compile", "dynamic=none", f"rounds={rounds}", "plain=false"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as run:
        assert any(line.startswith(stage) for line in run.stdout), run.stderr.read()
        run.send_signal(signal.SIGTERM)
        _, printed = run.communicate()
    assert run.returncode == 143
    assert "terminated; files with their final name are complete" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


SIGNAL_AT_START = """
import os, signal, sys, time
from multiprocessing import util
from zoo.scripts import export
from zoo.scripts.deploy import targets
start = util.spawnv_passfds
def start_and_signal(*arguments):
    process = start(*arguments)
    if "spawn_main" in str(arguments):  # not that of multiprocessing's resources
        os.kill(os.getpid(), signal.SIGTERM)
    return process
util.spawnv_passfds = start_and_signal
signal.signal(signal.SIGTERM, export._terminated)
try:
    targets._in_fresh_process(time.sleep, 10**6)
except KeyboardInterrupt as stopped:
    print(stopped)
"""


def test_a_signal_while_a_process_starts_leaves_no_traceback() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SIGNAL_AT_START]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("terminated\n", "")


def test_what_takes_long_says_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    printed, reminded = [], threading.Event()

    def write(text: str, **_: object) -> None:
        printed.append(text)
        if text.endswith("s so far"):
            reminded.set()

    monkeypatch.setattr(progress, "print", write, raising=False)
    with progress.stage("onnx: writing", every=0.01):
        assert reminded.wait(60)
    assert printed[0] == "onnx: writing ..."
    assert printed[1].startswith("onnx: writing: ")
