"""The targets, and how their files are written."""

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dcn_ops

from . import guard, inputs, quantize, through_pnnx

DYNAMIC = {"none": (), "batch": (0,), "size": (0, 2, 3)}
_LEAST_SIDE = 256
_NAMES = {0: "batch", 2: "height", 3: "width"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network to be exported, and how."""

    model: nn.Module  # takes float32, and returns float32, or of a detector the tensors of ``detectors.py``
    images: Tensor  # [N, C, H, W], an example
    inputs: list[Tensor]  # every shape that will be verified
    calibration: Tensor  # real images, for int8
    dynamic: str  # a key of DYNAMIC
    decompose: bool  # the file then runs without dcn_ops
    sampling: str  # a key of dcn_ops.interop.portable.SAMPLING
    opset: int
    int8: bool
    facts: dict[str, str]  # metadata for the file, JSON by name
    names: tuple[str, ...] = ("scores",)  # of the outputs
    two_stage: bool = False  # a detector of two stages

    def example(self) -> Tensor:
        """Return images to export with: dynamic sizes are not 1, which torch.export would make a constant.

        Nor are those of a detector's maps, whose coarsest has a stride of 128.
        """
        example, axes = self.images, DYNAMIC[self.dynamic]
        if axes and len(example) == 1:
            example = torch.cat((example, example))
        if 2 in axes and self.names != ("scores",):
            sides = [max(side, _LEAST_SIDE) for side in example.shape[2:]]
            example = nn.functional.interpolate(example, sides)
        return example

    def program(self, largest: int | None = None) -> torch.export.ExportedProgram:
        """Return the model's program with whole operators; ``largest`` bounds the dynamic sizes."""
        example, axes = self.example(), DYNAMIC[self.dynamic]
        if self.int8:
            return quantize.program(self.model, example, self.calibration, axes)
        dims: dict[int, Any] = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        if largest is not None:
            dims = {axis: torch.export.Dim(_NAMES[axis], max=largest) for axis in axes}
        with _quiet():
            return torch.export.export(self.model, (example,), dynamic_shapes=(dims,))

    def portable(self, largest: int | None = None, *, finite: bool = False) -> torch.export.ExportedProgram:
        """Return the program in core ATen; ``finite`` as for ``dcn_ops.decompositions``."""
        with _quiet():
            return self.program(largest).run_decompositions(dcn_ops.decompositions(self.sampling, finite=finite))


@dataclass(frozen=True)
class Target:
    """One target: its file's suffix, how it is written, and what it supports."""

    suffix: str
    write: Callable[[Job, Path], None]
    packages: tuple[str, ...] = ()  # that it needs
    extra: str = "export"  # the extra of pyproject.toml that installs them
    dynamic: tuple[str, ...] = ("none", "batch", "size")
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    int8: bool = False
    torchvision: bool = False  # whether the file calls torchvision's operators, which detectors of two stages have
    library: str = "never"  # when its process imports dcn_ops: "never", "whole" (unless decomposed), "always"


def check(wish: guard.Wish) -> None:
    """Raise ValueError if the target doesn't support the job, ImportError if it needs a missing package."""
    name, target = wish.target, TARGETS[wish.target]
    if wish.dynamic not in target.dynamic:
        raise ValueError(f"{name} files have constant sizes: use dynamic=none, got dynamic={wish.dynamic!r}")
    if wish.dtype not in target.dtypes:
        raise ValueError(f"{name} is exported in {', '.join(target.dtypes)}, got dtype={wish.dtype!r}")
    if wish.int8 and not target.int8:
        able = [other for other, value in TARGETS.items() if value.int8]
        raise ValueError(f"int8 is exported to {', '.join(able)}, got target={name}")
    guard.check(wish)
    packages = (*target.packages, *(("torchao",) if wish.int8 and name != "onnx" else ()))
    if name == "openvino" and wish.kind == "two-stage":
        packages += TARGETS["onnx"].packages
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ImportError(f"{', '.join(missing)} not installed: pip install 'dcn-zoo[{target.extra}]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings that torch itself causes."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", category)
        # torchvision traces the size of the image for a detector's boxes.
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
        # From torch.export.save, when parts of one tensor are constants.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        yield


def _compile(job: Job, file: Path) -> None:
    """Write the caches of torch.compile; ``torch.compiler.load_cache_artifacts`` loads them in another process."""
    # In a fresh process: whatever this process has compiled or frozen would change the keys of the caches.
    saved = _in_fresh_process(_caches, job.model, job.inputs, torch.get_num_threads())
    if saved is None:
        raise RuntimeError("torch.compile left nothing in its caches; are they switched off?")
    file.write_bytes(saved)


def _in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return ``function(*arguments)`` of a new process, which ends at once when a signal ends this one."""
    # A signal that came while the process is started would leave it with half of its input, and a traceback.
    # Python runs the handlers of signals in the main thread, so another one starts the process.
    with ThreadPoolExecutor(1) as starter, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        try:
            return starter.submit(process.submit, function, *arguments).result().result()
        except BaseException:
            starter.shutdown()  # waits until the process is started
            for child in active_children():
                child.kill()  # don't wait for the compiler
            raise


def _caches(model: nn.Module, inputs: list[Tensor], threads: int) -> bytes | None:
    torch.set_num_threads(threads)
    run = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        for images in inputs:
            run(images)
    saved = torch.compiler.save_cache_artifacts()
    return None if saved is None else saved[0]


def _contiguous(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def _aoti(job: Job, file: Path) -> None:
    # Freezing packs the weights, and lays them out itself. On torch 2.15, with dynamic sizes, it gives wrong
    # results for channels_last filters of one channel, and for int8 in any layout.
    job = replace(job, model=inputs.Checked(_contiguous(job.model)))
    program = job.portable() if job.decompose else job.program()
    settings = {"freezing": not job.int8 or job.dynamic == "none"}
    settings |= inputs.settings(job.images, DYNAMIC[job.dynamic]) | {"aot_inductor.metadata": job.facts}
    with _quiet(), torch.no_grad(), torch._inductor.config.patch(settings):
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def _torch_export(job: Job, file: Path) -> None:
    program = job.portable() if job.decompose else job.program()
    with _quiet():
        torch.export.save(program, file, extra_files=dict(job.facts))


def _torchscript(job: Job, file: Path) -> None:
    with _quiet(), torch.no_grad():
        model = job.portable().module() if job.decompose else job.model
        traced = torch.jit.trace(model, job.images, check_trace=False)
        torch.jit.save(torch.jit.freeze(traced.eval()), file, _extra_files=dict(job.facts))


def _onnx(job: Job, file: Path) -> None:
    import onnx

    axes = {axis: _NAMES[axis] for axis in DYNAMIC[job.dynamic]}
    model: Any = job.model
    if job.decompose:
        model = Job(**{**vars(job), "int8": False}).portable()
    # It warns about the conversion to another opset, and about the names of dynamic axes.
    for library in ("torch.onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with _quiet():
        torch.onnx.export(
            model,
            (job.example(),),
            file,
            dynamo=True,
            verbose=False,
            opset_version=job.opset,
            dynamic_shapes=(axes,),
            external_data=False,
            input_names=["images"],
            output_names=list(job.names),
        )
    if job.int8:
        quantize.onnx(file, job.calibration)
    written = onnx.load(file)
    onnx.helper.set_model_props(written, job.facts)
    onnx.save(written, file)


def _openvino(job: Job, file: Path) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as folder, _quiet():
        written: Any = Path(folder) / "network.onnx"
        if job.two_stage:  # OpenVINO 2026.4 converts NMS from ONNX, not from torch's programs
            _onnx(job, written)
        else:
            written = job.portable() if job.decompose else job.program()
        model = openvino.convert_model(written, extension=dcn_ops.openvino.extension())
    for name, value in job.facts.items():
        model.set_rt_info(value, name)
    openvino.save_model(model, file, compress_to_fp16=False)


def _executorch(job: Job, file: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # Memory is planned for the largest image: of those to verify, or twice the example.
    largest = max(2 * max(job.images.shape), *(max(images.shape) for images in job.inputs))
    # XNNPACK's pass for channels_last fails on weights that are already channels_last.
    portable = replace(job, model=_contiguous(job.model)).portable(largest)
    with _quiet():
        edge = to_edge_transform_and_lower(portable, partitioner=[XnnpackPartitioner()])
        file.write_bytes(edge.to_executorch().buffer)


def _ncnn(job: Job, file: Path) -> None:
    # ncnn has neither a batch nor a NaN check, and pnnx has no slices with steps, which gathers would need.
    one = replace(job, model=_contiguous(job.model), images=job.images[:1], sampling="grid_sample")
    with _quiet(), torch.no_grad():
        through_pnnx.write(one.portable(finite=True).module(), one.images, file)


TARGETS = {
    "compile": Target(".cache", _compile, dynamic=("none",), library="always"),
    "aoti": Target(".pt2", _aoti, int8=True, torchvision=True),
    "torch-export": Target(".export.pt2", _torch_export, library="whole", torchvision=True),
    "onnx": Target(".onnx", _onnx, ("onnx", "onnxruntime", "onnxscript"), int8=True),
    "openvino": Target(".xml", _openvino, ("openvino",)),
    "torchscript": Target(".pt", _torchscript, library="whole", torchvision=True),
    "executorch": Target(".pte", _executorch, ("executorch",), "executorch", dtypes=("float32",)),
    "ncnn": Target(".ncnn.param", _ncnn, ("ncnn", "pnnx"), "ncnn", dynamic=("none",), dtypes=("float32",)),
}
