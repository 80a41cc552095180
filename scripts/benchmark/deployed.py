"""Whole networks in the runtimes that dcn-export writes for, beside the plain network in each."""

import tempfile
from pathlib import Path

import timm
import torch

import zoo
from scripts.benchmark.measure import Row
from scripts.benchmark.models import perturb
from scripts.config import Export
from scripts.deploy.session import Session

MODELS = ("resnet50", "efficientnet_b0")
TARGETS = ("compile", "aoti", "onnx", "openvino")


def rows_of(name: str, batch: int, rounds: int, threads: int) -> list[Row]:
    """Export a converted network, offsets of about a pixel, for one size; return rows of it and of the plain one.

    Ratios are to the plain network in the same runtime, which was timed in turns with it.
    """
    torch.manual_seed(0)
    model = zoo.inject_(timm.create_model(name)).eval()
    perturb(model, sampling=True)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(model, Path(folder) / name)
        config = Export(model=f"{folder}/{name}", dynamic="none", batch=batch, rounds=rounds, threads=threads)
        session = Session(config)
        for target in ("eager", *TARGETS):
            head = {"case": f"{name} batch {batch}", "mode": "deployed", "threads": threads}
            try:
                row = session.eager() if target == "eager" else session.export(target, Path(folder))
            except Exception as error:  # a runtime that fails is reported as such, and the others go on
                found.append({**head, "provider": target, "refused": f"{type(error).__name__}: {error}"[:200]})
                continue
            found.append({**head, "provider": target, "ms": row.ms, "ratio": row.ratio})
            found.append({**head, "provider": f"plain {target}", "ms": row.plain_ms, "ratio": 1.0})
    return found
