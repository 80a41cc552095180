"""Every case of docs/runtimes.md that a target accepts, written by the target and run in its runtime."""

import importlib.util
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.scripts.deploy import guard, verify
from zoo.scripts.deploy.source import Ported
from zoo.scripts.deploy.targets import TARGETS, Job

import dcn_ops
from dcn_ops.conv import reference

REPOSITORY = Path(__file__).parents[2]
IMAGES = torch.randn(2, 6, 12, 700, generator=torch.Generator().manual_seed(0)).half().float()
IMAGES = IMAGES.contiguous(memory_format=torch.channels_last)  # as dcn-export gives them to a target
PARTS = ("offset", "weight", "bias", "mask")
USUAL = {"dynamic": "none", "dtype": "float32", "decompose": False, "sampling": "grid_sample", "opset": 20}


class Cases(nn.Module):
    """Layers side by side, each with its case's offsets and a corner of the images as input."""

    def __init__(self, questions: dict[str, Any]) -> None:
        from conformance.cases import example

        super().__init__()
        self.shapes = [question.shape for question in questions.values()]
        for i, question in enumerate(questions.values()):
            inputs = example(question)
            for name in PARTS:
                tensor = getattr(inputs, name)
                if tensor is not None:
                    self.register_buffer(f"{name}{i}", tensor[:1] if name in ("offset", "mask") else tensor)

    def calls(self, images: Tensor) -> list[tuple[Any, ...]]:
        """Return the arguments of every layer; the last is its shape."""
        found, zero = [], 0 * images[:, :1, :1, :1]  # offsets depend on the images, as in networks: no constants
        for i, shape in enumerate(self.shapes):
            offset, weight, bias, mask = (getattr(self, f"{name}{i}", None) for name in PARTS)
            height, width = shape.size
            image = images[:, : shape.channels, :height, :width]
            found.append((image, offset + zero, weight, bias, None if mask is None else mask + zero, shape))
        return found

    def forward(self, images: Tensor) -> Tensor:  # [N, all outputs of all layers]
        outputs = []
        for image, offset, weight, bias, mask, shape in self.calls(images):
            conv = shape.conv
            integers = (conv.stride, conv.padding, conv.dilation)
            outputs.append(dcn_ops.deform_conv2d(image, offset, weight, bias, *integers, mask).flatten(1))
        return torch.cat(outputs, 1)


def accepted(wish: guard.Wish) -> dict[str, Any]:
    from conformance.cases import CASES

    found = {}
    for case, question in CASES.items():
        if question.dtype != "float32" or question.axes or not question.specified:
            continue  # dtypes are those of the target; test_export_groups.py has dynamic sizes
        if case == "offsets of 1e30" and wish.dtype == "float16":
            continue  # float16 has no such number
        if case == "700 columns" and wish.dtype != "float32":
            continue  # nor has half precision its offsets, hundreds in steps of 1/32
        shape = question.shape
        layer = guard.Layer(
            channels=shape.channels, groups=shape.groups, offset_groups=shape.offset_groups, mask=shape.mask
        )
        try:
            guard.check(replace(wish, layers=frozenset([layer])))
        except ValueError:
            continue
        found[case] = question
    return found


def slow(*parameters: object) -> object:
    return pytest.param(*parameters, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("target", "changes", "left_out"),
    [
        slow("onnx", {}, 0),
        slow("onnx", {"opset": 18}, 0),
        slow("onnx", {"opset": 19}, 0),
        slow("onnx", {"opset": 22}, 0),
        slow("onnx", {"decompose": True, "sampling": "gather"}, 0),
        slow("onnx", {"dtype": "float16"}, 2),
        ("openvino", {}, 0),
        slow("openvino", {"dtype": "float16"}, 2),
        slow("openvino", {"decompose": True}, 0),
        slow("openvino", {"decompose": True, "sampling": "gather"}, 0),
        ("torch-export", {}, 0),
        slow("torch-export", {"dtype": "float16"}, 2),
        slow("torch-export", {"dtype": "bfloat16"}, 1),
        slow("torch-export", {"decompose": True}, 0),
        slow("torch-export", {"decompose": True, "sampling": "gather"}, 0),
        ("torchscript", {}, 0),
        slow("torchscript", {"decompose": True}, 0),
        slow("ncnn", {}, 2),
        slow("aoti", {}, 0),
        slow("compile", {}, 0),
        slow("executorch", {}, 0),
    ],
)
def test_every_case_that_a_target_accepts_is_right_in_its_runtime(
    target: str, changes: dict, left_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing := [name for name in TARGETS[target].packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"an extra of its own: {missing}")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    # The process that loads the caches of torch.compile imports the class of the network.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from conformance.cases import BUDGET

    asked = USUAL | changes
    questions = accepted(guard.Wish(target=target, int8=False, **asked))
    assert len(questions) == 47 - left_out
    if target == "aoti":  # the loops are those of "compile", which takes all; here g++ needs seconds for each
        questions = dict(list(questions.items())[::3])
    layers = Cases(questions).eval()
    expected = [reference.forward(*_double(call), call[-1].conv).flatten(1) for call in layers.calls(IMAGES)]
    outputs = written_and_run(target, layers, asked, tmp_path).split([len(e[0]) for e in expected], 1)
    budget = BUDGET[asked["dtype"]]
    errors = {
        case: float((output - right).abs().max() / right.abs().max())
        for case, output, right in zip(questions, outputs, expected, strict=True)
    }
    wrong = {case: error for case, error in errors.items() if not error <= budget}
    assert not wrong


def _double(call: tuple[Any, ...]) -> list[Tensor | None]:
    return [None if tensor is None else methodcaller("double")(tensor) for tensor in call[:-1]]


def written_and_run(target: str, layers: nn.Module, asked: dict, folder: Path) -> Tensor:
    dtype = getattr(torch, asked["dtype"])
    model = layers if dtype == torch.float32 else Ported(layers, dtype).eval()
    given = {name: asked[name] for name in ("dynamic", "decompose", "sampling", "opset")}
    images = {"images": IMAGES, "inputs": [IMAGES.contiguous()], "calibration": IMAGES}
    job = Job(model=model, int8=False, facts={}, **images, **given)
    file = folder / f"cases{TARGETS[target].suffix}"
    TARGETS[target].write(job, file)
    if target == "compile":
        torch.save(model, file.with_suffix(".module"))  # beside its caches, as dcn-export puts it
    library = TARGETS[target].library
    needs = library == "always" or (library == "whole" and not asked["decompose"])
    return verify.run([(target, file)], [IMAGES], library=needs, threads=1, rounds=1).outputs[0][0]
