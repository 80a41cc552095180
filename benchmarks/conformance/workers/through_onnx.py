"""Runtimes that read an ONNX file. A loader takes a case's folder, the form and its facts, and returns a run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, np.ndarray]], Any]


def onnxruntime(folder: Path, form: str, about: Any) -> Run:
    """ONNX Runtime on the CPU, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(folder / f"{form}.onnx", options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)[0]


def onnxruntime_int8(folder: Path, form: str, about: Any) -> Run:
    """ONNX Runtime after its own static quantisation, calibrated with the case's tensors."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            with np.load(folder / "example.npz") as tensors:
                named = {"input": "x", "offset": "offset", "mask": "mask"}
                self.given = iter([{named[n]: tensors[n] for n in tensors if n in named}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.given, None)

    quantize_static(folder / f"{form}.onnx", folder / f"{form}-int8.onnx", Reader())
    return onnxruntime(folder, f"{form}-int8", about)


def reference(folder: Path, form: str, about: Any) -> Run:
    """The reference evaluator of the onnx package."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(folder / f"{form}.onnx"))
    return lambda given: evaluator.run(None, given)[0]


def openvino(folder: Path, form: str, about: Any) -> Run:
    """OpenVINO's frontend for ONNX."""
    import openvino

    return _compiled(openvino.convert_model(folder / f"{form}.onnx"), about)


def _compiled(model: Any, about: Any) -> Run:
    import openvino

    precision = about["dtype"].replace("bfloat", "bf").replace("float", "f")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32" if precision == "f64" else precision}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda given: request.infer([given[n] for n in ("x", "offset", "mask") if n in given])[0]


def opencv(folder: Path, form: str, about: Any) -> Run:
    """OpenCV's dnn module."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(folder / f"{form}.onnx"))

    def run(given: dict[str, np.ndarray]) -> Any:
        for name, tensor in given.items():
            net.setInput(tensor, name)
        return net.forward()

    return run


def mnn(folder: Path, form: str, about: Any) -> Run:
    """MNN, by its own converter."""
    import MNN
    from MNN import expr

    file = folder / f"{form}.mnn"
    # The command mnnconvert calls pip first, and a server; its extension module converts alone.
    command = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)", "-f", "ONNX"]
    command += ["--modelFile", folder / f"{form}.onnx", "--MNNModel", file, "--bizCode", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not file.exists() or "Not Support" in done.stdout:
        lines = [
            line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Not Support" in line
        ]
        raise RuntimeError(f"mnnconvert: {' '.join(lines)[:300] or done.returncode}")
    with np.load(folder / "example.npz") as tensors:
        names = ["x", *(name for name in ("offset", "mask") if name in tensors)]  # a block has only x
    module = MNN.nn.load_module_from_file(str(file), names, ["y"])

    def run(given: dict[str, np.ndarray]) -> Any:
        variables = [_variable(given[name]) for name in names]
        (output,) = module.onForward(variables)
        return expr.convert(output, expr.NCHW).read().copy()

    def _variable(array: np.ndarray) -> Any:
        if array.dtype != np.float32:
            raise TypeError(f"MNN's tensors are float32, got {array.dtype}")
        variable = expr.placeholder(list(array.shape), expr.NCHW)
        variable.write(array)
        return variable

    return run


def tvm(folder: Path, form: str, about: Any) -> Run:
    """TVM's Relax importer, compiled by LLVM."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = from_onnx(onnx.load(folder / f"{form}.onnx"), keep_params_in_input=False)
    model = relax.transform.DecomposeOpsForInference()(model)
    machine = relax.VirtualMachine(tvm.compile(model, target="llvm"), tvm.cpu())
    return lambda given: machine["main"](*(tvm.runtime.tensor(tensor) for tensor in given.values())).numpy()


def jax(folder: Path, form: str, about: Any) -> Run:
    """JAX, imported by jaxonnxruntime."""
    import onnx
    from jaxonnxruntime import backend

    prepared = backend.Backend.prepare(onnx.load(folder / f"{form}.onnx"))
    return lambda given: np.asarray(prepared.run(given)[0])


def tinygrad(folder: Path, form: str, about: Any) -> Run:
    """The ONNX runner of tinygrad; its device for Python needs no clang."""
    os.environ.setdefault("DEV", "CPU" if shutil.which("clang") else "PYTHON")
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(str(folder / f"{form}.onnx"))
    return lambda given: runner({name: Tensor(tensor) for name, tensor in given.items()})["y"].numpy()
