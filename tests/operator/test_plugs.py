"""The exporters that people have: both of torch.onnx, OpenVINO's, timm's function and timmx, as they come."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm.utils.onnx
import torch
from torch import Tensor, nn

import dcn_ops
import zoo
from dcn_ops import DeformConv2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # The tracer's, of sizes that a network compares; and the exporter's, of an argument that timm still gives.
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*dynamic_axes.*:UserWarning"),
]

SIZES = ((2, 3, 13, 11), (3, 3, 19, 16))  # batch, height, width; the first is the one exported
LAYERS = {
    "v2": {},
    "v2, no bias": {"bias": False},
    "v1": {"modulated": False},
    "groups": {"groups": 2, "offset_groups": 2},
    "groups, v1, no bias": {"groups": 4, "modulated": False, "bias": False},
}


def net(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), **arguments)
    nn.init.normal_(layer.offset_weight, std=0.2)
    nn.init.normal_(layer.offset_bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), layer, nn.BatchNorm2d(8), nn.ReLU()).eval()


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def assert_close(actual: np.ndarray, expected: Tensor) -> None:
    # Positions in other units are off by 1e-6 pixels, and so much of the difference of neighbours, the samples.
    limit = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=limit)


def operators(file: Path) -> set[str]:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    return {node.op_type for node in model.graph.node}


def export(model: nn.Module, file: Path, opset: int | None, *, dynamo: bool) -> None:
    names = {0: "batch", 2: "height", 3: "width"}
    dynamic = {"dynamic_shapes": (names,)} if dynamo else {"dynamic_axes": {"x": names}, "input_names": ["x"]}
    torch.onnx.export(model, (draw(*SIZES[0]),), file, dynamo=dynamo, opset_version=opset, verbose=False, **dynamic)


@torch.no_grad()
def check_session(file: Path, model: nn.Module) -> None:
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        (actual,) = session.run(None, {session.get_inputs()[0].name: draw(*size).numpy()})
        assert_close(actual, model(draw(*size)))


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_onnx_has_deform_conv(layer: str, dynamo: bool, tmp_path: Path) -> None:
    model, file = net(**LAYERS[layer]), tmp_path / "model.onnx"
    export(model, file, None, dynamo=dynamo)
    assert "DeformConv" in operators(file)
    check_session(file, model)


def test_translations_wait_for_the_exporter() -> None:
    code = """
import importlib.util, sys
import torch, dcn_ops
assert not {"onnxscript", "torch.onnx", "openvino"} & set(sys.modules)
assert importlib.util.find_spec("torch.onnx") is not None  # looking for it is not importing it
model = dcn_ops.DeformConv2d(2, 3, 3)
program = torch.onnx.export(model.eval(), (torch.zeros(1, 2, 5, 5),), dynamo=True, verbose=False)
assert "DeformConv" in [node.op_type for node in program.model.graph]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("layer", ["v2, no bias", "groups"])
def test_before_opset_19_it_is_decomposed(layer: str, tmp_path: Path) -> None:
    model, file = net(**LAYERS[layer]), tmp_path / "model.onnx"
    export(model, file, 18, dynamo=True)
    assert {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""] == 18
    assert "GridSample" in operators(file)
    assert "DeformConv" not in operators(file)
    check_session(file, model)


def test_before_opset_19_the_legacy_exporter_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="added in version 19"):
        export(net(), tmp_path / "model.onnx", 18, dynamo=False)


def test_positions_wider_than_features_stay_so(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def forward(self, input: Tensor, offset: Tensor) -> Tensor:
            return dcn_ops.deform_conv2d(input, offset, torch.ones(2, 4, 1, 1, dtype=torch.float16))

    arguments = (torch.randn(1, 4, 5, 6).half(), torch.randn(1, 2, 5, 6))
    program = torch.onnx.export(Wide().eval(), arguments, dynamo=True, verbose=False)
    node = next(node for node in program.model.graph if node.op_type == "DeformConv")
    assert {value.dtype.name for value in node.inputs if value is not None} == {"FLOAT"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feed = dict(zip((i.name for i in session.get_inputs()), (a.numpy() for a in arguments), strict=True))
    (actual,) = session.run(None, feed)
    assert actual.dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(actual), Wide()(*arguments), rtol=2e-3, atol=4e-3)


@pytest.mark.parametrize("source", ["module", "trace", "program", "onnx"])
@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_openvino_reads_every_form(layer: str, source: str, tmp_path: Path) -> None:
    model, example, file = net(**LAYERS[layer]), draw(*SIZES[0]), tmp_path / "model.onnx"
    if source == "onnx":
        export(model, file, None, dynamo=True)
    shapes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    form = {
        "module": lambda: model,
        "trace": lambda: torch.jit.trace(model, example),
        "program": lambda: torch.export.export(model, (example,), dynamic_shapes=shapes),
        "onnx": lambda: file,
    }[source]()
    arguments = {"example_input": example} if source in ("module", "trace") else {}
    converted = openvino.convert_model(form, extension=dcn_ops.openvino.extension(), **arguments)
    kinds = {node.get_type_name() for node in converted.get_ops()}
    assert ("DeformableConvolution" in kinds) != ("groups" in layer)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        assert_close(compiled(draw(*size).numpy())[0], model(draw(*size)))


@pytest.mark.parametrize("groups", [1, 2, 8])
@torch.no_grad()
def test_openvino_reads_a_bare_layer_whose_channels_only_its_weight_tells(groups: int) -> None:
    layer = DeformConv2d(8, 8, 3, padding=1, groups=groups).eval()
    nn.init.normal_(layer.offset_bias)
    converted = openvino.convert_model(
        layer, example_input=draw(1, 8, 9, 7), extension=dcn_ops.openvino.extension()
    )
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_close(compiled(draw(2, 8, 6, 8).numpy())[0], layer(draw(2, 8, 6, 8)))


class Given(nn.Module):
    """The operator with offsets and masks from outside."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups, self.weight = groups, nn.Parameter(torch.randn(4, 4 // groups, 3, 3))

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return dcn_ops.deform_conv2d(x, offset, self.weight, padding=1, mask=mask)


def run_openvino(source: object, arguments: tuple[Tensor, ...], **more: object) -> np.ndarray:
    converted = openvino.convert_model(source, extension=dcn_ops.openvino.extension(), **more)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([argument.numpy() for argument in arguments])[0]


def run_onnx(model: nn.Module, arguments: tuple[Tensor, ...], file: Path, **how: object) -> np.ndarray:
    names = ["x", "offset", "mask"]
    torch.onnx.export(model, arguments, file, verbose=False, input_names=names, **how)
    feed = dict(zip(names, (argument.numpy() for argument in arguments), strict=True))
    return onnxruntime.InferenceSession(file).run(None, feed)[0]


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_positions_that_are_not_finite_or_far_away_sample_0_in_every_runtime(groups: int, tmp_path: Path) -> None:
    model, file = Given(groups).eval(), tmp_path / "model.onnx"
    arguments = torch.randn(2, 4, 7, 6), torch.randn(2, 18, 7, 6), torch.rand(2, 9, 7, 6)
    offset = arguments[1].view(-1)
    places = torch.randperm(offset.numel())
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31)):
        offset[places[100 * i : 100 * i + 100]] = value
    expected = model(*arguments)
    assert expected.isfinite().all()
    program = torch.export.export(model, arguments)
    for outputs in (
        run_onnx(model, arguments, file, dynamo=True, opset_version=18),
        run_onnx(model, arguments, file, dynamo=False, opset_version=20),
        run_onnx(model, arguments, file, dynamo=True, opset_version=20),
        run_openvino(file, arguments),
        run_openvino(program, arguments),
        run_openvino(model, arguments, example_input=arguments),
        program.run_decompositions(dcn_ops.decompositions()).module()(*arguments).numpy(),
    ):
        assert_close(outputs, expected)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=5)
    for module in zoo.inject_(model).eval().modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset_weight, std=0.2)
            nn.init.normal_(module.offset_bias)
    return model


@pytest.mark.parametrize("dynamo", [True, False])
def test_timm_exports_a_converted_network_and_checks_it(dynamo: bool, tmp_path: Path) -> None:
    model, file = backbone(), tmp_path / "model.onnx"
    timm.utils.onnx.onnx_export(
        model, str(file), batch_size=2, input_size=(3, 64, 64), use_dynamo=dynamo, check_forward=True
    )
    assert "DeformConv" in operators(file)


TIMMX = "import zoo; from timmx.cli import app; app()"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch-export", "torchscript"])
def test_timmx_exports_a_converted_network_and_verifies_it(form: str, tmp_path: Path) -> None:
    zoo.save(zoo.inject_(timm.create_model("test_resnet", num_classes=5)), tmp_path / "hub")
    file = tmp_path / "model"
    command = [sys.executable, "-W", "ignore", "-c", TIMMX, "export", form, f"local-dir:{tmp_path / 'hub'}"]
    command += ["--pretrained", "--output", str(file), "--input-size", "3", "64", "64"]
    command += ["--no-slim"] if form == "onnx" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert file.stat().st_size > 0
