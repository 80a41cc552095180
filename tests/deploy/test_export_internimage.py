"""dcn-export of InternImage (DCNv3) and FlashInternImage (DCNv4): the targets that CI has, in their runtimes."""

from pathlib import Path

import onnx
import pytest
import timm
import torch
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy.report import Row
from zoo.scripts.deploy.run import run

import zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
KWARGS = {"channels": 16, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8), "num_classes": 7}
NAMES = ["internimage_tiny", "flash_internimage_tiny"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the networks, with offsets and masks that are not those of the start, and classes that differ."""
    found = {}
    for name in NAMES:
        torch.manual_seed(0)
        model = timm.create_model(name, **KWARGS).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "gamma" in key or "offset" in key or "mask" in key:
                    parameter.normal_(std=0.1)
            model.head.weight.normal_()
        found[name] = tmp_path_factory.mktemp("saved") / name
        zoo.save(model, found[name], KWARGS)
    return found


def exported(folder: Path, to: Path, target: str, **changes: object) -> Row:
    options = {"target": target, "folder": str(to), "size": [64], "rounds": 1, "threads": 1, "plain": False}
    rows = {row.target: row for row in run(Export(model=str(folder), **options, **changes))}
    assert rows[target].reason is None
    assert rows[target].relative <= 1e-3
    assert rows[target].top1 == 1
    return rows[target]


@pytest.mark.parametrize(
    ("name", "target"),
    [(NAMES[0], target) for target in ("onnx", "openvino", "torchscript", "torch-export")] + [(NAMES[1], "onnx")],
)
def test_a_target_takes_every_size(name: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    row = exported(folders[name], tmp_path, target, dynamic="size")
    assert row.dynamic == "batch, height, width"
    assert row.library == (target in ("torchscript", "torch-export"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_gathered_on_request(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    row = exported(folders[name], tmp_path, "onnx", decompose=True, sampling="gather")
    assert not row.library
    assert "GridSample" not in {node.op_type for node in onnx.load(row.file).graph.node}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [(NAMES[0], "aoti"), (NAMES[1], "torch-export")])
def test_a_file_needs_no_library(name: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    assert not exported(folders[name], tmp_path, target, decompose=target != "aoti").library
