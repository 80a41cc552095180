"""Whole networks in the runtimes of dcn-export, compared with the plain network in each."""

import shutil
import tempfile
from pathlib import Path

import timm
import torch

import zoo

from ..config.schema import Bench, Export
from ..deploy.session import Session
from .measure import Row
from .models import perturb

MODELS = ("resnet50", "efficientnet_b0")
TARGETS = ("compile", "aoti", "onnx", "openvino")
_OF_TORCH = ("compile", "aoti")


def rows_of(name: str, config: Bench) -> list[Row]:
    """Export a converted network with offsets of about a pixel for one size; return its rows and the plain one's.

    Every file is verified. It is timed alternately with the plain network's file, in a process of its runtime;
    ratios are to the plain network. Files for torch are then timed alternately with eager: "against_eager". Exports
    take minutes and all cores. With ``config.exports`` the files are kept, so a second run on a quiet machine only
    times.
    """
    torch.manual_seed(0)
    model = zoo.inject_(timm.create_model(name)).eval()
    perturb(model, sampling=True)
    batch, threads, found = config.batch, config.threads[0], list[Row]()
    with tempfile.TemporaryDirectory() as temporary:
        folder, rounds = f"{temporary}/{name}", config.rounds
        zoo.save(model, folder)
        session = Session(Export(model=folder, dynamic="none", batch=batch, threads=threads, rounds=rounds))
        kept = Path(config.exports or temporary) / f"{name}-batch{batch}-threads{threads}"
        for target in ("eager", *TARGETS):
            head = {"case": f"{name} batch {batch}", "mode": "deployed", "threads": threads}
            against = {}
            try:
                files = [] if target == "eager" else _files(session, target, kept)
                row = session.verified(target, files) if files else session.eager()
                if target in _OF_TORCH:
                    against["against_eager"] = session.against_eager(target, files[0])
            except Exception as error:  # a runtime that fails gets a row, and the others continue
                found.append({**head, "provider": target, "refused": f"{type(error).__name__}: {error}"[:200]})
                continue
            found.append({**head, "provider": target, "ms": row.ms, "ratio": row.ratio, **against})
            found.append({**head, "provider": f"plain {target}", "ms": row.plain_ms, "ratio": 1.0})
    return found


def _files(session: Session, target: str, kept: Path) -> list[Path]:
    """Return the files of the network and of the plain one; write those that are not kept yet."""
    networks = ("network", "plain")
    if not (kept / target).is_dir():
        new = kept / f"{target}.partial"
        shutil.rmtree(new, ignore_errors=True)
        for network in networks:
            (new / network).mkdir(parents=True)
        session.write(target, [new / network for network in networks])
        new.rename(kept / target)
    return session.files(target, [kept / target / network for network in networks])
