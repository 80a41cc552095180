"""A network with groups and offset groups, in the runtime of every target."""

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy.run import run
from zoo.scripts.storage import checkpoint

from dcn_ops import DeformConv2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
RECIPE = {
    "create_model": {
        "model_name": "resnet50",
        "layers": (1, 1, 1, 1),
        "channels": (8, 8, 8, 8),
        "cardinality": 2,
        "base_width": 32,
        "num_classes": 7,
    },
    "dcn": {"include": ("layer3.0.conv2", "layer4.0.conv2"), "offset_groups": 4},
}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = checkpoint.build(RECIPE).eval()
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    assert [(layer.groups, layer.offset_groups) for layer in layers] == [(2, 4), (2, 4)]
    for layer in layers:
        nn.init.normal_(layer.offset_weight, std=0.1)
        nn.init.normal_(layer.offset_bias)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    path = tmp_path_factory.mktemp("run") / "grouped.safetensors"
    checkpoint.save(model, RECIPE, path)
    return path


def export(source: Path, folder: Path, target: str, **changes: object) -> str | None:
    """Export, and return the reason of a failure."""
    config = Export(
        checkpoint=str(source), folder=str(folder), size=[64], target=target, rounds=1, threads=1, plain=False
    )
    for name, value in changes.items():
        setattr(config, name, value)
    (row,) = (row for row in run(config) if row.target == target)
    if row.reason is None:
        assert row.relative <= 1e-3
        assert Path(row.file).is_file()
    return row.reason


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        ("onnx", {}),
        ("onnx", {"opset": 18}),
        ("onnx", {"decompose": True, "sampling": "gather"}),
        ("openvino", {}),
        ("torch-export", {}),
        ("torchscript", {}),
        ("ncnn", {"dynamic": "none"}),
        ("ncnn", {"dynamic": "none", "batch": 3}),
        ("onnx", {"dynamic": "size"}),
        ("openvino", {"dynamic": "size"}),
        ("torch-export", {"dynamic": "size"}),
        pytest.param("aoti", {}, marks=pytest.mark.slow),
        pytest.param("compile", {"dynamic": "none"}, marks=pytest.mark.slow),
        pytest.param("executorch", {}, marks=pytest.mark.slow),
    ],
)
def test_groups_and_offset_groups_are_right_in_the_runtime(
    target: str, changes: dict, grouped: Path, tmp_path: Path
) -> None:
    needed = {"ncnn": "pnnx", "executorch": "executorch"}
    if target in needed:
        pytest.importorskip(needed[target], reason=f"an extra of its own: pip install -e '.[{target}]'")
    assert export(grouped, tmp_path, target, **changes) is None


def test_a_refused_wish_leaves_no_file(grouped: Path, tmp_path: Path) -> None:
    assert "use dtype=float16" in export(grouped, tmp_path, "onnx", dtype="bfloat16")
    assert "use dynamic=none" in export(grouped, tmp_path, "ncnn")
    assert not list(tmp_path.iterdir())
