"""The routes: a runtime, how a layer gets into it, and the packages that its process needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Route:
    """One column of the table."""

    runtime: str
    way: str  # how the layer gets into the runtime
    worker: str  # module:function in workers/
    form: str  # file or variant that the worker takes
    versions: tuple[str, ...]  # distributions whose versions are written down
    install: tuple[str, ...] = ()  # what a new environment needs in addition
    torch: bool = False  # its process needs torch and this project
    budget: float = 0.0  # largest error that is right, where it is more than the dtype's

    @property
    def name(self) -> str:
        """The name on the command line and in the JSON file."""
        return f"{self.runtime}: {self.way}"


def _onnx(runtime: str, worker: str, versions: tuple[str, ...], install: tuple[str, ...] = ()) -> list[Route]:
    ways = {"DeformConv": "deform19", "GridSample": "grid_sample", "gathers": "gather"}
    return [Route(runtime, way, f"through_onnx:{worker}", form, versions, install) for way, form in ways.items()]


def _own(runtime: str, way: str, worker: str, form: str, *versions: str, torch: bool = True) -> Route:
    return Route(runtime, way, f"operators:{worker}", form, versions, torch=torch)


_ORT = ("onnxruntime",)
_OV = ("openvino",)
ROUTES = [
    Route("ONNX Runtime", "DeformConv, opset 19", "through_onnx:onnxruntime", "deform19", _ORT),
    Route("ONNX Runtime", "DeformConv, opset 20", "through_onnx:onnxruntime", "deform20", _ORT),
    Route("ONNX Runtime", "DeformConv, opset 22", "through_onnx:onnxruntime", "deform22", _ORT),
    Route("ONNX Runtime", "GridSample", "through_onnx:onnxruntime", "grid_sample", _ORT),
    Route("ONNX Runtime", "gathers", "through_onnx:onnxruntime", "gather", _ORT),
    Route(
        "ONNX Runtime", "DeformConv, int8", "through_onnx:onnxruntime_int8", "deform19", _ORT, ("onnx",), budget=0.1
    ),
    Route(
        "ONNX Runtime",
        "GridSample, int8",
        "through_onnx:onnxruntime_int8",
        "grid_sample",
        _ORT,
        ("onnx",),
        budget=0.1,
    ),
    Route("ONNX Runtime", "gathers, int8", "through_onnx:onnxruntime_int8", "gather", _ORT, ("onnx",), budget=0.1),
    Route("onnx.reference", "DeformConv", "through_onnx:reference", "deform22", ("onnx",)),
    Route("onnx.reference", "GridSample", "through_onnx:reference", "grid_sample", ("onnx",)),
    Route("onnx.reference", "gathers", "through_onnx:reference", "gather", ("onnx",)),
    _own("OpenVINO", "its node, as by default", "openvino_native", "default", *_OV, torch=False),
    _own("OpenVINO", "its node, bilinear_interpolation_pad", "openvino_native", "zeros", *_OV, torch=False),
    *_onnx("OpenVINO", "openvino", _OV),
    _own("OpenVINO", "DeformConv, our extension", "openvino_extension", "deform19", *_OV),
    _own("OpenVINO", "torch.export, our extension", "openvino_program", "", *_OV),
    _own("ncnn", "torchvision's layer by pnnx", "ncnn", "module", "ncnn", "pnnx"),
    _own("ncnn", "GridSample by pnnx", "ncnn", "grid_sample", "ncnn", "pnnx"),
    *_onnx("OpenCV", "opencv", ("opencv-python-headless",)),
    *_onnx("MNN", "mnn", ("MNN",)),
    *_onnx("TVM", "tvm", ("apache-tvm",), ("onnx",)),
    *_onnx("JAX", "jax", ("jax", "jaxonnxruntime"), ("onnx", "absl-py", "jax<0.5")),
    *_onnx("tinygrad", "tinygrad", ("tinygrad",), ("onnx",)),
    _own("ExecuTorch", "grid_sampler_2d", "executorch", "grid_sample", "executorch", "torch"),
    _own("ExecuTorch", "gathers", "executorch", "gather", "executorch", "torch"),
    _own("torchvision", "its operator", "torchvision", "", "torchvision", "torch"),
    _own("torch", "this project's operator", "dcn_ops", "", "torch"),
    _own("torch.export", "core ATen, grid_sampler_2d", "torch_export", "grid_sample", "torch"),
    _own("torch.export", "core ATen, gathers", "torch_export", "gather", "torch"),
    _own("TorchScript", "this project's operator", "torchscript", "", "torch"),
    _own("AOTInductor", "this project's operator", "aoti", "", "torch"),
    _own("PaddlePaddle", "its operator", "paddle", "", "paddlepaddle", torch=False),
    _own("MindSpore", "its operator", "mindspore", "", "mindspore", torch=False),
]
