"""Importing the operator imports only torch, and the names in the documents exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRANGERS = {
    "timm",
    "hydra",
    "omegaconf",
    "triton",
    "torchvision",
    "rich",
    "safetensors",
    "onnx",
    "onnxscript",
    "openvino",
}


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules of a fresh process."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import dcn_ops", "import dcn_ops; dcn_ops.DeformConv2d(4, 8, 3)(torch.zeros(1, 4, 5, 5)).sum().backward()"],
)
def test_no_strangers_beyond_those_of_torch(statement: str) -> None:
    brought = modules_after(f"import torch; {statement}") - modules_after("import torch")
    assert not brought & STRANGERS


def test_names_of_the_documents_are_there_after_importing_the_packages() -> None:
    # Not files, such as zoo.md, not what python -m runs, and not what needs other libraries: tests/ecosystem.
    name = re.compile(r"(?<!-m )(?<![\w./])(?:zoo|dcn_ops)(?:\.(?!md\b|py\b|integrations\b)\w+)+")
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    names = sorted({found for path in documents for found in name.findall(path.read_text())})
    assert {"zoo.optim.param_groups", "zoo.fold_", "dcn_ops.set_implementation"} <= set(names)
    modules = "dcn_ops, zoo, zoo.conf, zoo.scripts.storage.checkpoint, zoo.scripts.inspect.offset_statistics"
    modules += ", dcn_ops.compat.mmcv, dcn_ops.compat.detectron2, zoo.scripts.storage.sharing"
    code = f"import {modules}; " + "; ".join(names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
