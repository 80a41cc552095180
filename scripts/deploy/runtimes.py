"""Run exported networks in the runtime of their target, in a process that imports nothing else.

    python runtimes.py REQUEST.json

The request names the files with their targets. The first is run; the others, such as the plain network's, are only
timed alternately with it. The request also names the inputs (.npz of float32 [N, C, H, W]), the paths of outputs
and times, threads and rounds, and of a detector the file beside it that finds objects in its outputs. This file
imports nothing of the project, and only the runtimes that are needed: it runs what a deployed program would run.
"""

import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], list[np.ndarray]]


def _of_torch(function: Callable[..., Any]) -> Run:
    import torch

    @torch.inference_mode()
    def run(images: np.ndarray) -> list[np.ndarray]:
        out = function(torch.from_numpy(images))
        return [tensor.numpy() for tensor in ((out,) if isinstance(out, torch.Tensor) else out)]

    return run


def _pickled(file: Path) -> Any:
    import torch

    return torch.load(file.with_suffix(".module"), weights_only=False)


def _eager(file: Path, threads: int) -> Run:
    return _of_torch(_pickled(file))


def _compile(file: Path, threads: int) -> Run:
    import torch
    from torch._dynamo.utils import counters

    torch.compiler.load_cache_artifacts(file.read_bytes())
    run = _of_torch(torch.compile(_pickled(file), fullgraph=True, dynamic=False))

    def warm(images: np.ndarray) -> list[np.ndarray]:
        out = run(np.ascontiguousarray(images))  # another memory layout would be compiled again
        misses = counters["inductor"]["fxgraph_cache_miss"] + counters["aot_autograd"]["autograd_cache_miss"]
        if misses:
            raise RuntimeError(f"{misses} graphs for images of shape {images.shape} were not in {file.name}")
        return out

    return warm


def _aoti(file: Path, threads: int) -> Run:
    import torch

    return _of_torch(torch._inductor.aoti_load_package(str(file)))


def _torch_export(file: Path, threads: int) -> Run:
    import torch

    return _of_torch(torch.export.load(file).module())


def _torchscript(file: Path, threads: int) -> Run:
    import torch

    return _of_torch(torch.jit.load(file))


def _onnx(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def _openvino(file: Path, threads: int) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(file, "CPU", settings).create_infer_request()
    return lambda images: [out.copy() for out in request.infer([images]).values()]


def _executorch(file: Path, threads: int) -> Run:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    return lambda images: [out.numpy() for out in method.execute([torch.from_numpy(np.ascontiguousarray(images))])]


def _ncnn(file: Path, threads: int) -> Run:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise RuntimeError(f"ncnn doesn't load {file.name}: ncnn lacks one of its layers, or it is damaged")

    def scores(image: np.ndarray) -> np.ndarray:  # [C, H, W], contiguous
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        status, out = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn stopped with status {status}")
        return np.array(out)

    return lambda images: [np.stack([scores(image) for image in np.ascontiguousarray(images)])]


RUNTIMES: dict[str, Callable[[Path, int], Run]] = {
    "eager": _eager,
    "compile": _compile,
    "aoti": _aoti,
    "torch-export": _torch_export,
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": _torchscript,
    "executorch": _executorch,
    "ncnn": _ncnn,
}
_OF_TORCH = {"eager", "compile", "aoti", "torch-export", "torchscript", "executorch"}


def main(request: dict[str, Any]) -> None:
    """Answer a request: run every input, then time the first input, alternating between the files."""
    files, threads = request["files"], request["threads"]
    if any(target in _OF_TORCH for target, _ in files):
        import torch

        torch.set_num_threads(threads)
    if request["library"]:
        import dcn_ops  # noqa: F401  (registers the operator)
    if request["torchvision"]:
        import torchvision  # noqa: F401  (registers NMS and RoIAlign)
    start = time.perf_counter()
    runs = [RUNTIMES[target](Path(file), threads) for target, file in files]
    with np.load(request["inputs"]) as file:
        inputs = [file[str(i)] for i in range(len(file))]
    runs[0](inputs[0])
    first = time.perf_counter() - start
    outputs = [runs[0](images) for images in (*inputs, _as_pictures(inputs[0]))]
    if "dcn_ops" in sys.modules and not request["library"]:
        raise RuntimeError("the artifact should run without dcn_ops, but imported it")
    times = _timed(runs, inputs[0], request["rounds"])
    found = {f"{i}/{j}": array for i, arrays in enumerate(outputs) for j, array in enumerate(arrays)}
    if request["finder"]:
        found |= _objects(outputs, **request["finder"])
    np.savez(request["outputs"], **found)  # type: ignore[arg-type]
    Path(request["times"]).write_text(json.dumps({**times, "first_s": first}))


def _objects(
    outputs: list[list[np.ndarray]], file: str, names: list[str], settings: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Return the arrays of the objects in each image, by "objects/input/image/name"."""
    sys.dont_write_bytecode = True  # no __pycache__ beside the user's file
    spec = importlib.util.spec_from_file_location("detections", file)
    assert spec is not None
    assert spec.loader is not None
    beside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(beside)
    return {
        f"objects/{i}/{j}/{name}": array
        for i, arrays in enumerate(outputs)
        for j, one in enumerate(beside.find(dict(zip(names, arrays, strict=True)), **settings))
        for name, array in one.items()
    }


def _as_pictures(images: np.ndarray) -> np.ndarray:
    """Return the same images [N, C, H, W] in the memory layout of decoded pictures, [N, H, W, C]."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _timed(runs: list[Run], images: np.ndarray, rounds: int) -> dict[str, list[Any]]:
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds + 2):  # two warm-up rounds
        for run, values in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(images)
            if i >= 2:
                values.append(1000 * (time.perf_counter() - start))
    quartiles = [statistics.quantiles(values if len(values) > 1 else values * 2, n=4) for values in times]
    return {"ms": [statistics.median(values) for values in times], "quartiles": [(q[0], q[2]) for q in quartiles]}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
