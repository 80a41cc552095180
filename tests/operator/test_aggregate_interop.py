"""The aggregation outside torch: in core ATen, in ONNX Runtime and in OpenVINO."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from aggregates import CASES, Case, make_inputs
from torch import Tensor, nn

import dcn_ops
import zoo  # noqa: F401  (registers InternImage)
from dcn_ops.aggregate.reference import forward as reference
from dcn_ops.interop import aggregate, portable

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
ways = pytest.mark.parametrize("sampling", portable.SAMPLING)


@ways
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_ways_of_sampling_are_the_reference(case: Case, sampling: str) -> None:
    inputs = make_inputs(case, torch.float64)
    actual = aggregate.forward(*inputs, case.window, sampling, finite=False)
    torch.testing.assert_close(actual, reference(*inputs, case.window), rtol=1e-10, atol=1e-10)
    assert actual.is_contiguous()


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = {
        "v3": dcn_ops.DCNv3(8, group=2, remove_center=True, center_feature_scale=True, offset_scale=0.5),
        "v4": dcn_ops.DCNv4(8, group=2, kernel_size=(3, 2), stride=(2, 1)),
    }[kind]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return dcn_ops.ChannelsFirst(module).eval()


LAYOUTS = (torch.contiguous_format, torch.channels_last)
SIZES = ((2, 8, 9, 7), (3, 8, 12, 5))
DYNAMIC = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
layers = pytest.mark.parametrize("kind", ["v3", "v4"])


def assert_close(actual: np.ndarray, expected: Tensor) -> None:
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=limit)


@ways
@layers
@torch.no_grad()
def test_onnx_runtime_runs_a_decomposed_layer_of_any_size(kind: str, sampling: str, tmp_path: Path) -> None:
    model, file = layer(kind), tmp_path / "model.onnx"
    program = torch.export.export(model, (torch.randn(SIZES[0]),), dynamic_shapes=(DYNAMIC,))
    program = program.run_decompositions(dcn_ops.decompositions(sampling))
    torch.onnx.export(program, (), file, dynamo=True, verbose=False)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert ("GridSample" in kinds) == (sampling == "grid_sample")
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        images = torch.randn(size)
        assert_close(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0], model(images))


@ways
@layers
@pytest.mark.parametrize("traced", LAYOUTS)
@torch.no_grad()
def test_a_program_runs_in_every_memory_layout(kind: str, sampling: str, traced: torch.memory_format) -> None:
    model, images = layer(kind), torch.randn(SIZES[0])
    program = torch.export.export(model, (images.contiguous(memory_format=traced),))
    program = program.run_decompositions(dcn_ops.decompositions(sampling))
    for layout in LAYOUTS:
        actual = program.module()(images.contiguous(memory_format=layout))
        torch.testing.assert_close(actual, model(images), rtol=0, atol=1e-5)


@layers
@torch.no_grad()
def test_the_exporter_of_torch_decomposes_the_operator_by_itself(kind: str, tmp_path: Path) -> None:
    model, file = layer(kind), tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(SIZES[0]),), file, dynamo=True, dynamic_shapes=(DYNAMIC,), verbose=False)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        images = torch.randn(size)
        assert_close(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0], model(images))


@torch.no_grad()
def test_onnx_runtime_samples_0_where_offsets_are_not_finite(tmp_path: Path) -> None:
    class Given(nn.Module):
        def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return dcn_ops.dcnv3(input, offset, mask, 3, 3, 1, 1, 1, 1, 1, 1, 2, 3)

    inputs, file = make_inputs(Case()), tmp_path / "model.onnx"
    flat = inputs.offset.view(-1)
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30)):
        flat[i::31] = value
    torch.onnx.export(Given().eval(), tuple(inputs), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    names = [each.name for each in session.get_inputs()]
    (actual,) = session.run(None, {name: t.numpy() for name, t in zip(names, inputs, strict=True)})
    assert_close(actual, Given()(*inputs))


@layers
@torch.no_grad()
def test_openvino_runs_a_decomposed_layer(kind: str) -> None:
    model, images = layer(kind), torch.randn(SIZES[0])
    program = torch.export.export(model, (images,)).run_decompositions(dcn_ops.decompositions())
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled(images.numpy())[0], model(images))


@layers
@torch.no_grad()
def test_openvino_reads_the_operator_of_any_size_and_type(kind: str) -> None:
    model, extension = layer(kind), dcn_ops.openvino.extension()
    program = torch.export.export(model, (torch.randn(SIZES[0]),), dynamic_shapes=(DYNAMIC,))
    traced = torch.jit.trace(model, torch.randn(SIZES[0]), check_trace=False)
    for source, shape in ((program, None), (traced, [-1, 8, -1, -1])):
        converted = openvino.convert_model(source, extension=extension, input=shape)
        compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for size in SIZES:
            images = torch.randn(size)
            assert_close(compiled(images.numpy())[0], model(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["internimage_tiny", "flash_internimage_base"])
@torch.no_grad()
def test_onnx_runtime_runs_a_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, channels=16, depths=(1, 2, 1, 1), groups=(1, 2, 4, 8), num_classes=5).eval()
    for key, parameter in model.named_parameters():
        if "gamma" in key or "offset" in key or "mask" in key:
            parameter.normal_(std=0.3)
    images, file = torch.randn(2, 3, 64, 64), tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    (actual,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), model(images), rtol=1e-3, atol=1e-4)
