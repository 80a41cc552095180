"""What to take and to avoid in each runtime: the first table of docs/runtimes.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Advice:
    """One row."""

    runtime: str
    way: str  # the route to take; empty: none
    avoid: str
    how: str = ""  # how to take it, where the way doesn't say it


NO_NODE = "`DeformConv`, which it lacks"
ADVICE = [
    Advice(
        "ONNX Runtime",
        "DeformConv, opset 20",
        "int8 of a decomposed file: offsets are wrong by whole pixels; bfloat16, which it lacks",
        "`target=onnx`",
    ),
    Advice(
        "OpenVINO",
        "torch.export, our extension",
        "its node without `bilinear_interpolation_pad`: samples beyond a border are wrong, and one case ends the "
        "process; `DeformConv` without our extension, which it can't read; `GridSample` in float16; bfloat16 "
        "networks",
        "`target=openvino`",
    ),
    Advice(
        "ncnn",
        "GridSample by pnnx",
        "torchvision's layer by pnnx: all offset groups get the first one's offsets, groups don't load; one "
        "channel in each offset group is wrong either way",
        "`target=ncnn`",
    ),
    Advice("AOTInductor", "this project's operator", "", "`target=aoti`"),
    Advice("torch.export", "core ATen, grid_sampler_2d", "", "`target=torch-export decompose=true`"),
    Advice("TorchScript", "this project's operator", "", "`target=torchscript`"),
    Advice("ExecuTorch", "grid_sampler_2d", "a batch of 0", "`target=executorch`"),
    Advice("torch", "this project's operator", ""),
    Advice("torchvision", "its operator", "bfloat16, which it lacks; one case ends the process"),
    Advice("OpenCV", "GridSample", f"{NO_NODE}; a batch of 0; one case ends the process", "`target=onnx opset=18`"),
    Advice("MNN", "GridSample", f"{NO_NODE}; a batch of 0", "`target=onnx opset=18`"),
    Advice("TVM", "GridSample", f"{NO_NODE}; dynamic height and width", "`target=onnx opset=18`"),
    Advice(
        "tinygrad",
        "gathers",
        "`DeformConv` and `GridSample`, which it lacks; dynamic sizes",
        "`target=onnx decompose=true sampling=gather`",
    ),
    Advice("onnx.reference", "gathers", "`DeformConv` of one row or one pixel, which raises"),
    Advice("JAX", "", "jaxonnxruntime 0.3: operators of all three forms are missing"),
    Advice(
        "PaddlePaddle", "its operator", "half precision, which it lacks; filters that offset groups don't divide"
    ),
    Advice("MindSpore", "its operator", "bfloat16 and float64, which it lacks; a batch of 0"),
]
# Runtimes that did not run here.
ON_PAPER = [
    [
        "TensorRT, not run",
        "`DeformConv`, from parser 10.1",
        "",
        "`GridSample` of opset 20: read as nearest ([#4646](https://github.com/NVIDIA/TensorRT/issues/4646), cause "
        "in [onnx-tensorrt#1060](https://github.com/onnx/onnx-tensorrt/pull/1060))",
    ],
    [
        "Core ML, not run",
        "coremltools after [#2752](https://github.com/apple/coremltools/pull/2752), or the decomposed program",
        "",
        "",
    ],
]
