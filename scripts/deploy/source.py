"""The network to deploy: a checkpoint of dcn-train, a folder of zoo.save, or a timm name."""

import copy
import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import zoo
from dcn_ops import DeformConv2d

from ..storage import checkpoint
from ..storage.existing import existing


@dataclass(frozen=True)
class Source:
    """A network in eval mode, and the shape of its images."""

    name: str
    model: nn.Module
    size: tuple[int, int, int]  # C, H, W
    head: str | None = None  # the detector or segmenter around a timm network


def load(path: str | None, model: str | None, size: Any) -> Source:
    """Load the network of a checkpoint, or of a folder or timm name.

    Args:
        path: A checkpoint of dcn-train.
        model: A folder of ``zoo.save``, or a name for ``timm.create_model`` such as "resnet50_dcn".
        size: Height and width, or one number for both; by default the network's own size.

    Raises:
        ValueError: If both or neither are given, the name is unknown, a file or folder can't be read, or the size
            is invalid.
        FileNotFoundError: If the checkpoint doesn't exist.
    """
    if (path is None) == (model is None):
        raise ValueError("expected checkpoint=FILE of dcn-train, or model=FOLDER of zoo.save or a timm name")
    sides = [size] if isinstance(size, int) else size
    if sides is not None and not _are_sides(sides):
        raise ValueError(f"expected size=SIDE or size=[HEIGHT, WIDTH], of 1 pixel or more, got size={size!r}")
    head = None
    if path is not None:
        existing(path, f"expected a checkpoint of dcn-train, such as last.safetensors, got checkpoint={path}")
        name = _stem(Path(path))
        with _readable(f"checkpoint={path}", "a safetensors file that dcn-train wrote"):
            network = checkpoint.load(path)
            head = (checkpoint.read_recipe(path).get("head") or {}).get("name")
    else:
        name, network = _named(str(model))
    channels = _channels(network)
    default = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    height, width = default[1:] if sides is None else (sides[0], sides[-1])
    return Source(name, network.eval(), (channels, height, width), head)


def _are_sides(sides: Any) -> bool:
    return isinstance(sides, list) and len(sides) in (1, 2) and all(type(s) is int and s >= 1 for s in sides)


def _stem(path: Path) -> str:
    # runs/train/<time>/dcn/last.safetensors: "dcn" is a better name than "last"
    return path.parent.name if path.stem in ("last", "best") and path.parent.name else path.stem


@contextmanager
def _readable(argument: str, kind: str) -> Iterator[None]:
    """Raise an error with the expected kind of file or folder if reading it and building its network fails."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"expected {kind}, whole, got {argument}, which can't be read: {reason[:300]}") from error


def _named(model: str) -> tuple[str, nn.Module]:
    if (Path(model) / "config.json").is_file():
        with _readable(f"model={model}", "a folder that zoo.save wrote"):
            return Path(model).resolve().name, zoo.load(model)
    if not timm.is_model(model.partition(".")[0]):
        close = difflib.get_close_matches(model, timm.list_models(), n=5)
        raise ValueError(f"no folder with a config.json and no network of timm: '{model}'; close: {close}")
    return model, timm.create_model(model)


def _channels(network: nn.Module) -> int:
    return next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)


def plain(model: nn.Module) -> nn.Module | None:
    """Return a copy with the original convolutions, or None if none was converted."""
    if not any(isinstance(m, DeformConv2d) for m in model.modules()):
        return None
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, DeformConv2d):
            model.set_submodule(name, layer.to_conv2d())
    return model


class Ported(nn.Module):
    """A network in another dtype that takes and returns float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of images [N, C, H, W]."""
        scores: torch.Tensor = self.model(images.to(self.dtype)).float()
        return scores
