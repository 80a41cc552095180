"""The operator in core ATen, by either way of sampling, in runtimes that know neither it nor ``DeformConv``."""

import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

import dcn_ops
import zoo
from dcn_ops import DeformConv2d
from dcn_ops.conv.problem import Problem
from dcn_ops.conv.reference import forward as reference
from dcn_ops.interop import portable
from dcn_ops.testing import Case, make_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def move_offsets(module: nn.Module) -> nn.Module:
    """Give every layer offsets of its own."""
    for layer in module.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.offset_weight, std=0.1)
            nn.init.normal_(layer.offset_bias)
    return module.eval()


@pytest.mark.parametrize("sampling", portable.SAMPLING)
def test_both_ways_of_sampling_are_the_reference(case: Case, sampling: str) -> None:
    inputs = make_inputs(case, torch.float64)
    tensors = (inputs.input, inputs.offset, inputs.weight, inputs.bias, inputs.mask)
    expected = reference(*tensors, case.conv)
    actual = portable.forward(Problem(*tensors, case.conv), sampling, finite=True)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_another_way_of_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="expected sampling to be one of grid_sample, gather, got sampling='bags'"):
        dcn_ops.decompositions("bags")


class Given(nn.Module):
    """The operator with offsets and masks from outside."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, channels // groups, 3, 2))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return dcn_ops.deform_conv2d(x, offset, self.weight, None, (2, 1), (1, 2), (1, 2), mask)


def with_strange_offsets(*size: int) -> Tensor:
    offset = 3 * torch.randn(size)
    flat, places = offset.view(-1), torch.randperm(offset.numel())
    values = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31)
    share = len(flat) // 20
    for i, value in enumerate(values):
        flat[places[share * i : share * (i + 1)]] = value
    return offset


@pytest.mark.parametrize("sampling", portable.SAMPLING)
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 4), (4, 2)])
@torch.no_grad()
def test_onnx_runtime_samples_0_where_offsets_are_not_finite(
    sampling: str, groups: int, offset_groups: int, tmp_path: Path
) -> None:
    model, sizes = Given(groups, 4).eval(), ((2, 9, 7), (3, 6, 12))

    def arguments(n: int, h: int, w: int) -> tuple[Tensor, ...]:
        ho, wo = (h - 1) // 2 + 1, w + 2
        offset = with_strange_offsets(n, 12 * offset_groups, ho, wo)
        return torch.randn(n, 4, h, w), offset, torch.rand(n, 6 * offset_groups, ho, wo)

    example = arguments(*sizes[0])
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, example, dynamic_shapes=(dynamic, dynamic, dynamic))
    program = program.run_decompositions(dcn_ops.decompositions(sampling))
    file, names = tmp_path / "model.onnx", ["x", "offset", "mask"]
    torch.onnx.export(program, (), file, dynamo=True, verbose=False, input_names=names)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert ("GridSample" in kinds) == (sampling == "grid_sample")
    assert "DeformConv" not in kinds
    session = onnxruntime.InferenceSession(file)
    for size in sizes:
        given = arguments(*size)
        feed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        (actual,) = session.run(None, feed)
        expected = model(*given)
        assert expected.isfinite().all()
        assert torch.equal(program.module()(*given).isfinite(), expected.isfinite())
        torch.testing.assert_close(
            torch.from_numpy(actual), expected, rtol=0, atol=1e-5 * expected.abs().max().item()
        )


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("sampling", portable.SAMPLING)
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("traced", LAYOUTS)
@torch.no_grad()
def test_a_program_runs_in_every_memory_layout(
    sampling: str, groups: int, offset_groups: int, traced: torch.memory_format
) -> None:
    model = Given(groups, 4).eval()
    shapes = ((2, 4, 9, 7), (2, 12 * offset_groups, 5, 9), (2, 6 * offset_groups, 5, 9))
    inputs = [torch.randn(shape) for shape in shapes]
    example = tuple(tensor.contiguous(memory_format=traced) for tensor in inputs)
    program = torch.export.export(model, example).run_decompositions(dcn_ops.decompositions(sampling))
    expected = model(*inputs)
    for layouts in product(LAYOUTS, repeat=3):
        given = [tensor.contiguous(memory_format=layout) for tensor, layout in zip(inputs, layouts, strict=True)]
        torch.testing.assert_close(program.module()(*given), expected, rtol=0, atol=1e-5)


# ncnn, by way of pnnx


def run_ncnn(model: nn.Module, images: Tensor, folder: Path) -> Tensor:
    """Convert a network by pnnx as docs/deployment.md says, and run one image [1, C, H, W]."""
    ncnn, pnnx = (pytest.importorskip(name, reason="pip install ncnn pnnx") for name in ("ncnn", "pnnx"))
    program = torch.export.export(model, (images,)).run_decompositions(dcn_ops.decompositions(finite=True))
    torch.jit.trace(program.module(), images, check_trace=False).save(folder / "model.pt")
    shape = f"inputshape={list(images.shape)}".replace(" ", "")
    done = subprocess.run(
        [pnnx.EXEC_PATH, "model.pt", shape, "fp16=0"], cwd=folder, check=True, capture_output=True, text=True
    )
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(folder / "model.ncnn.param")) == 0, done.stdout + done.stderr
    assert net.load_model(str(folder / "model.ncnn.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(images[0].numpy()).clone())
    status, scores = extractor.extract("out0")
    assert status == 0
    return torch.from_numpy(np.array(scores))


LAYERS = {
    "dense": {},
    "v1": {"modulated": False},
    "no bias": {"bias": False},
    "bounded": {"offset_bound": 2.0},
    "groups": {"groups": 2, "offset_groups": 2},
    "depthwise": {"groups": 4},
}


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_ncnn_runs_a_layer(layer: str, tmp_path: Path) -> None:
    deformable = DeformConv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), **LAYERS[layer])
    model, images = move_offsets(nn.Sequential(nn.Conv2d(3, 4, 3), deformable)), torch.randn(1, 3, 13, 11)
    expected = model(images)[0]
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(run_ncnn(model, images, tmp_path), expected, rtol=0, atol=limit)


@torch.no_grad()
def test_ncnn_runs_a_network_of_timm(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=5)
    move_offsets(zoo.inject_(model, zoo.DCNConfig(stages=(2, 3, 4))))
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)[0]
    limit = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(run_ncnn(model, images, tmp_path), expected, rtol=0, atol=limit)
