"""The operator alone brings in torch alone."""

import subprocess
import sys

import pytest

STRANGERS = {"timm", "hydra", "omegaconf", "triton", "torchvision", "onnx", "onnxscript", "openvino"}


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
