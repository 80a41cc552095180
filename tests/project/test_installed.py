"""A wheel without its source, in a folder whose own packages have the names of ours."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dcn_ops

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"  # the build leaves files next to the sources
    left_out = shutil.ignore_patterns(
        ".*", "build", "*.egg-info", "benchmarks", "docs", "runs", "exports", "shared"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(copy)]
    subprocess.run(pip, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("scripts/__init__", "scripts/train", "conf/__init__", "zoo"):
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise AssertionError('a module of the user')\n")
    site = folder / ".site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    return folder


def run(elsewhere: Path, *command: str) -> str:
    site = elsewhere / ".site"
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(site), "PATH": path}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_packages_are_installed_with_the_version_of_the_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "dcn_ops",
        "zoo",
        f"dcn_zoo-{dcn_ops.__version__}.dist-info",
    }
    assert {"zoo/conf/train.yaml", "zoo/conf/deploy/export.yaml", "zoo/scripts/train.py", "zoo/py.typed"} <= set(
        names
    )
    native = ROOT / "dcn_ops/native"
    assert {str(path.relative_to(ROOT)) for path in native.glob("*.*") if path.suffix in (".cpp", ".h")} <= set(
        names
    )


@pytest.mark.parametrize(
    "command", ["dcn-train", "dcn-bench", "dcn-evaluate", "dcn-export", "dcn-migrate", "dcn-visualize"]
)
def test_a_command_shows_its_config(command: str, elsewhere: Path) -> None:
    assert run(elsewhere, command, "--help").startswith(f"{command} KEY=VALUE")


def test_a_network_is_trained_and_launched_by_torchrun(elsewhere: Path) -> None:
    quick = ["data.max_batches=1", "data.batch_size=20", "data.eval_copies=1", "optim.epochs=1", "device=cpu"]
    quick += ["optim.warmup_epochs=0", "optim.offset_warmup_steps=0", "report=false", "variants=[dcn]"]
    for folder, launcher in (("alone", []), ("launched", ["torchrun", "--nproc_per_node", "1", "--no-python"])):
        run(elsewhere, *launcher, "dcn-train", *quick, f"hydra.run.dir={folder}")
        assert (elsewhere / folder / "dcn" / "last.safetensors").is_file()
    where = run(elsewhere, sys.executable, "-P", "-c", "import zoo.scripts.train as t; print(t.__file__)")
    assert Path(where.strip()) == elsewhere / ".site" / "zoo" / "scripts" / "train.py"
