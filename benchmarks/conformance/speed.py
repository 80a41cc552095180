"""The speed of a deformable block beside the plain one in each runtime: a bottleneck of ResNet-50's third stage."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dcn_ops

from .files import PORTABLE
from .routes import Route
from .workers.layer import Block

_CHANNELS, _INNER, _SIDE = 1024, 256, 14
# These forms are written of it; the plain file has their names too.
FORMS = ("deform20", *PORTABLE)


def timed(route: Route) -> bool:
    """Return whether the speed of a route is measured: the block must be written in its form."""
    # tinygrad takes minutes to compile the gathers of a block; the reference evaluator is none for speed.
    by_file = route.worker.startswith("through_onnx:") or route.worker.endswith("openvino_extension")
    if by_file:
        return route.form in FORMS and not route.worker.endswith(("int8", "jax", "reference", "tinygrad"))
    return not route.worker.endswith("openvino_native") and route.form != "module"


def write(folder: Path) -> None:
    """Write the deformable and the plain block, with the right output, in every form."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator)

    tensors = {
        "input": draw(1, _CHANNELS, _SIDE, _SIDE, scale=1.0),
        "first": draw(_INNER, _CHANNELS, 1, 1, scale=_CHANNELS**-0.5),
        "predictor": draw(27, _INNER, 3, 3, scale=(9 * _INNER) ** -0.5),  # offsets of about a pixel
        "weight": draw(_INNER, _INNER, 3, 3, scale=(9 * _INNER) ** -0.5),
        "last": draw(_CHANNELS, _INNER, 1, 1, scale=_INNER**-0.5),
    }
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("deformable", "plain"):
        place = folder / kind
        place.mkdir(parents=True)
        np.savez(place / "example.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
        (place / "about.json").write_text(json.dumps({"block": kind, "dtype": "float32", "axes": ()}))
        model = Block(dcn_ops.deform_conv2d if kind == "deformable" else None, tensors).eval()
        with torch.no_grad():
            np.save(place / "expected.npy", model(tensors["input"]).numpy())
        for form in FORMS:
            _export(model, tensors["input"], form, place / f"{form}.onnx")


def _export(model: Block, image: torch.Tensor, form: str, file: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = model.exported((image,), ())
        if form in PORTABLE:
            program = program.run_decompositions(dcn_ops.decompositions(form))
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(
            program, (), file, dynamo=True, verbose=False, opset_version=20, external_data=False, **names
        )
