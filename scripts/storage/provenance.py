"""The provenance of a number: command, commit, machine and versions."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def provenance(command: str) -> dict[str, Any]:
    """Return the provenance of this command's numbers."""
    cpu = [line for line in _said("lscpu").splitlines() if line.startswith(("Model name", "CPU(s)", "L3"))]
    packages = ("torch", "torchvision", "timm", "onnxruntime", "openvino")
    return {
        "command": " ".join([command, *sys.argv[1:]]),
        "commit": _said("git", "describe", "--always", "--dirty").strip(),
        "machine": [" ".join(line.split()) for line in cpu] or [platform.processor()],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {p: version for p in packages if (version := _version(p))},
    }


def _said(*command: str) -> str:
    """Return the output of a system command, or nothing if the command doesn't exist."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        ).stdout
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
