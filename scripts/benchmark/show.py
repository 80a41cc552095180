"""The tables, and the JSON with its provenance."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..storage.files import atomically
from .measure import Row


def tables(rows: list[Row], verdicts: list[dict[str, Any]], console: Console) -> None:
    """Print what was measured, and each bound as met or missed."""
    table = Table("case", "mode", "threads", "provider", "ms", "quartiles", "x floor", "peak MiB")
    for row in rows:
        head = [row["case"], row["mode"], str(row["threads"]), row["provider"]]
        if note := row.get("wrong") or row.get("refused"):
            table.add_row(*head, "wrong" if "wrong" in row else "-", note, "", "")
            continue
        quartiles = "{:.2f}-{:.2f}".format(*row["quartiles"]) if "quartiles" in row else ""
        ms = [f"{row['ms']:.2f}" if "ms" in row else "", quartiles]
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
        table.add_row(*head, *ms, ratio, f"{row['peak'] / 2**20:.1f}" if row.get("peak") is not None else "")
    console.print(table)
    if verdicts:
        table = Table("case", "mode", "provider", "against", "at most", "measured", "")
        for v in verdicts:
            mark = "met" if v["met"] else "missed"
            numbers = f"{v['limit']:.2f}", f"{v['ratio']:.2f}"
            table.add_row(v["case"], v["mode"], v["provider"], v["peer"], *numbers, mark)
        console.print(table)
        console.print(f"{sum(v['met'] for v in verdicts)} of {len(verdicts)} bounds met")


def provenance(command: str = "dcn-bench") -> dict[str, Any]:
    """Return what a number needs beside it."""
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
    """Return what a command of the system prints, nothing where there is no such command."""
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


def save(rows: list[Row], verdicts: list[dict[str, Any]], path: Path) -> None:
    """Write the JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**provenance(), "rows": rows, "bounds": verdicts}, indent=1) + "\n"

    def write(new: Path) -> None:
        new.write_text(content)

    atomically(path, write)
