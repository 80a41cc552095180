"""The presets of detectors and segmenters: what each builds, without downloading weights."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from zoo.scripts.config.command import compose_train
from zoo.scripts.storage import checkpoint
from zoo.scripts.tasks.detection import Detection
from zoo.scripts.tasks.segmentation import Segmentation
from zoo.scripts.training import variants

from dcn_ops import DeformConv2d
from zoo import conf

PRESETS = sorted(
    p.stem for p in Path(conf.__file__).parent.glob("experiment/*.yaml") if p.stem[:3] in ("det", "seg")
)
# The number of layers that become deformable: 3 x 3 in the blocks of both stages, or the depthwise ones.
LAYERS = {"small": 6, "digits": 6, "resnet50": 9, "convnext_tiny": 4, "efficientnet_b0": 11}
# InternImage has deformable layers of its own; here those of the head become deformable.
OF_HEAD = {"detect_internimage_tiny": ("head.", 8), "segment_internimage_tiny": ("decoder.", 5)}


def test_both_tasks_have_a_small_preset_and_four_that_fine_tune() -> None:
    fine = ("convnext_tiny", "efficientnet_b0", "internimage_tiny", "resnet50", "small")
    assert {f"{task}_{name}" for task in ("detect", "segment") for name in fine} <= set(PRESETS)


def large(name: str) -> bool:
    return name.partition("_")[2] not in ("small", "digits")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if large(n) else []) for n in PRESETS])
def test_a_preset_builds_its_network_with_its_deformable_layers(name: str) -> None:
    config = compose_train(f"experiment={name}", "model.pretrained=false")
    variants.check(config)
    kind = Detection if config.task.name == "detection" else Segmentation
    task = kind(config.head, ("one", "two"))
    arguments = {"model_name": config.model.name, "in_chans": config.data.in_chans, **config.model.kwargs}
    recipe = {"create_model": {**arguments, **task.arguments()}, "head": task.head(), "dcn": asdict(config.dcn)}
    model = checkpoint.build(recipe).eval()
    found = [n for n, module in model.named_modules() if isinstance(module, DeformConv2d)]
    part, count = OF_HEAD.get(name) or (("backbone.body.", "encoder."), LAYERS[name.partition("_")[2]])
    assert all(n.startswith(part) for n in found)
    assert len(found) == count
    with torch.no_grad():
        assert task.check(model(torch.zeros(2, config.data.in_chans, 64, 64)), 2) is None
