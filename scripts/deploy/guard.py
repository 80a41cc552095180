"""Combinations that a runtime computes wrongly or doesn't have, by the results behind docs/runtimes.md.

``known.json`` beside this file has what fails in the forms that dcn-export writes; it is written by
``benchmarks/runtimes.py``. A failure has features, such as "groups". A layer meets it if layer and wish have all of
them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from dcn_ops import DCNv3, DCNv4, DeformConv2d

# Below it ONNX has no DeformConv, and the file has GridSample.
DEFORM_CONV_OPSET = 19
# By target and form, the route of benchmarks/runtimes.py; decomposed TorchScript is the program of torch.export.
_PROGRAMS = {
    "grid_sample": "torch.export: core ATen, grid_sampler_2d",
    "gather": "torch.export: core ATen, gathers",
}
ROUTES = {
    "aoti": {"whole": "AOTInductor: this project's operator"},
    "compile": {"whole": "torch: this project's operator"},
    "torch-export": {"whole": "torch: this project's operator", **_PROGRAMS},
    "torchscript": {"whole": "TorchScript: this project's operator", **_PROGRAMS},
    "onnx": {
        **{f"opset {opset}": f"ONNX Runtime: DeformConv, opset {opset}" for opset in (19, 20, 22)},
        "whole, int8": "ONNX Runtime: DeformConv, int8",
        "grid_sample": "ONNX Runtime: GridSample",
        "grid_sample, int8": "ONNX Runtime: GridSample, int8",
        "gather": "ONNX Runtime: gathers",
        "gather, int8": "ONNX Runtime: gathers, int8",
    },
    "openvino": {
        "whole": "OpenVINO: torch.export, our extension",
        "grid_sample": "OpenVINO: GridSample",
        "gather": "OpenVINO: gathers",
    },
    "executorch": {"grid_sample": "ExecuTorch: grid_sampler_2d", "gather": "ExecuTorch: gathers"},
    "ncnn": {"grid_sample": "ncnn: GridSample by pnnx"},
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What of a deformable layer decides whether a runtime computes it."""

    channels: int
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True

    def features(self) -> set[str]:
        """Return what the layer has beside the usual."""
        features = {
            "groups": self.groups > 1,
            "offset groups": self.offset_groups > 1,
            "one channel in each offset group": self.channels == self.offset_groups > 1,
            "no mask": not self.mask,
        }
        return {name for name, has in features.items() if has}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a target; the fields of the config, and kind and layers of the network."""

    target: str
    dynamic: str
    dtype: str
    int8: bool
    decompose: bool
    sampling: str
    opset: int
    kind: str = "scores"  # or "one-stage", "two-stage": detectors
    layers: frozenset[Layer] = frozenset()

    def route(self) -> str | None:
        """Return the route of benchmarks/runtimes.py that takes this form; None if there is none."""
        form = self._form()
        return ROUTES[self.target].get(f"{form}, int8" if self.int8 and self.target == "onnx" else form)

    def _form(self) -> str:
        if self.target == "ncnn":  # pnnx has no slices with steps, which gathers need
            return "grid_sample"
        without_node = self.target == "onnx" and self.opset < DEFORM_CONV_OPSET
        if self.decompose or without_node or self.target == "executorch":
            return self.sampling
        if self.target == "onnx" and not self.int8:
            return f"opset {max(opset for opset in (19, 20, 22) if opset <= self.opset)}"
        return "whole"

    def features(self) -> set[str]:
        """Return what is asked beside the usual."""
        features = set() if self.dtype == "float32" else {self.dtype}
        dynamic = {"none": set[str](), "batch": {"dynamic batch"}, "size": {"dynamic batch", "dynamic size"}}
        return features | dynamic[self.dynamic]


def layers(model: nn.Module) -> frozenset[Layer]:
    """Return the deformable layers of a network, equal ones once."""
    return frozenset(_layers(model))


def _layers(model: nn.Module) -> Iterator[Layer]:
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            yield Layer(
                channels=module.in_channels,
                groups=module.groups,
                offset_groups=module.offset_groups,
                mask=module.modulated,
            )
        elif isinstance(module, DCNv3 | DCNv4):
            yield Layer(channels=module.channels, offset_groups=module.group)


@cache
def known() -> dict[str, Any]:
    """Return the failures by route: versions, and for each failure its case, features and what is seen."""
    known: dict[str, Any] = json.loads(Path(__file__).with_name("known.json").read_text())
    return known


def check(wish: Wish) -> None:
    """Raise ValueError, with the reason and the cure, if the runtime of the target is known to fail."""
    refused = next((why for applies, why in _of_detectors(wish) if applies), None)
    if refused is not None:
        raise ValueError(refused)
    reason = _reason(wish)
    if reason is not None:
        raise ValueError(f"{reason}; {_cure(wish)}")


def _reason(wish: Wish) -> str | None:
    if wish.target == "torchscript" and wish.decompose and wish.dynamic != "none":
        return "a decomposed TorchScript trace has constant sizes"
    # Seen in whole networks; a layer alone is right.
    if wish.target == "openvino" and wish.dtype == "bfloat16":
        return "OpenVINO 2026.4 gives wrong scores for a bfloat16 program, with errors as large as the scores"
    route = wish.route()
    if route not in known():
        return None
    for layer in sorted(wish.layers, key=str) or [Layer(channels=1)]:
        for failure in known()[route]["failures"]:
            if wish.features() | layer.features() >= set(failure["features"]):
                what = f" for a layer such as {layer}" if layer.features() else ""
                return f"{route} {known()[route]['version']} {failure['seen']}{what}"
    return None


def _cure(wish: Wish) -> str:
    """Return the smallest change that is known to be right."""
    changes: list[dict[str, Any]] = [
        {"dynamic": "none"},
        {"decompose": False},
        {"decompose": False, "opset": max(wish.opset, DEFORM_CONV_OPSET)},
        {"decompose": True, "sampling": "gather"},
        *({"dtype": dtype} for dtype in ("float16", "float32")),
        {"int8": False},
        {"int8": False, "dtype": "float32"},
    ]
    for change in changes:
        asked = {name: getattr(wish, name) for name in change}
        if asked != change and _reason(replace(wish, **change)) is None:
            return f"use {_text(change)}, got {_text(asked)}"
    others = [target for target in ("onnx", "openvino") if _reason(replace(wish, target=target)) is None]
    return f"use another target, such as {' or '.join(others)}" if others else "no form of it is known to be right"


def _text(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={str(value).lower()}" for name, value in values.items())


def _of_detectors(wish: Wish) -> list[tuple[bool, str]]:
    detector, two_stage = wish.kind != "scores", wish.kind == "two-stage"
    return [
        (
            detector and (wish.dtype != "float32" or wish.int8),
            "a box in fewer bits is wrong by pixels, so detectors are exported in float32: use dtype=float32 "
            f"int8=false, got dtype={wish.dtype!r} and int8={wish.int8}",
        ),
        (
            detector and wish.target in ("executorch", "ncnn"),
            "its runtime was not tried with the several outputs of a detector: use target=onnx or target=openvino, "
            f"got target={wish.target}",
        ),
        (
            two_stage and wish.target == "compile",
            "torch.compile breaks the graph at the suppression of regions, whose number depends on the image: use "
            "target=torchscript or target=torch-export, got target=compile",
        ),
        (
            two_stage and wish.dynamic != "none",
            "Faster and Mask R-CNN choose the regions of one image after another, so the number of images and "
            f"their size are constants of the file: use dynamic=none batch=1, got dynamic={wish.dynamic!r}",
        ),
    ]
