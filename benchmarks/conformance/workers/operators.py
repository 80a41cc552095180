"""Runtimes with an operator of their own, and those that read torch's programs; loaders as in ``through_onnx``."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from through_onnx import Run, _compiled


def _tensors(folder: Path, file: str = "example") -> dict[str, np.ndarray]:
    with np.load(folder / f"{file}.npz") as tensors:
        return dict(tensors)


def _layer(folder: Path, about: Any, operator: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the layer with an operator, or the block around it, and its example."""
    import torch
    from layer import Block, Layer

    tensors = _tensors(folder)
    example = tuple(torch.from_numpy(tensors[n]) for n in ("input", "offset", "mask") if n in tensors)
    if "block" in about:
        return Block(operator if about["block"] == "deformable" else None, tensors).eval(), example
    return Layer(operator, tensors, about, about["dtype"]).eval(), example


def _torch(module: Any) -> Run:
    import torch

    def run(given: dict[str, np.ndarray]) -> Any:
        with torch.no_grad():
            return module(*(torch.from_numpy(given[n]) for n in ("x", "offset", "mask") if n in given)).numpy()

    return run


def torchvision(folder: Path, form: str, about: Any) -> Run:
    """torchvision.ops.deform_conv2d on the CPU."""
    from torchvision.ops import deform_conv2d

    return _torch(_layer(folder, about, deform_conv2d)[0])


def dcn_ops(folder: Path, form: str, about: Any) -> Run:
    """This project's operator in eager mode."""
    import dcn_ops

    return _torch(_layer(folder, about, dcn_ops.deform_conv2d)[0])


def _program(folder: Path, about: Any, sampling: str | None, largest: int | None = None) -> Any:
    import torch

    import dcn_ops

    layer, example = _layer(folder, about, dcn_ops.deform_conv2d)
    if largest is None:
        program = layer.exported(example, about["axes"])
    else:
        names = {0: "n", 2: "h", 3: "w"}
        dims = {axis: torch.export.Dim(names[axis], max=largest) for axis in about["axes"]}
        program = torch.export.export(layer, example, dynamic_shapes=tuple(dims for _ in example))
    return program if sampling is None else program.run_decompositions(dcn_ops.decompositions(sampling))


def torch_export(folder: Path, form: str, about: Any) -> Run:
    """The program of torch.export in core ATen, saved and loaded."""
    import torch

    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "layer.pt2"
        torch.export.save(_program(folder, about, form), file)
        return _torch(torch.export.load(file).module())


def torchscript(folder: Path, form: str, about: Any) -> Run:
    """A trace with this project's operator, saved and loaded."""
    import torch

    import dcn_ops

    layer, example = _layer(folder, about, dcn_ops.deform_conv2d)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "layer.pt"
        torch.jit.trace(layer, example, check_trace=False).save(file)
        return _torch(torch.jit.load(file))


def aoti(folder: Path, form: str, about: Any) -> Run:
    """A package of AOTInductor."""
    import torch

    with tempfile.TemporaryDirectory() as place:
        file = str(Path(place) / "layer.pt2")
        settings = {"aot_inductor.check_lowerbound": False}
        with torch._inductor.config.patch(settings):
            torch._inductor.aoti_compile_and_package(_program(folder, about, None), package_path=file)
        return _torch(torch._inductor.aoti_load_package(file))


def executorch(folder: Path, form: str, about: Any) -> Run:
    """ExecuTorch with its portable kernels."""
    import torch
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = to_edge_transform_and_lower(_program(folder, about, form, 16)).to_executorch()
    with tempfile.NamedTemporaryFile(suffix=".pte") as file:
        Path(file.name).write_bytes(program.buffer)
        method = Runtime.get().load_program(Path(file.name)).load_method("forward")
    names = ("x", "offset", "mask")
    return lambda given: method.execute([torch.from_numpy(given[n]) for n in names if n in given])[0].numpy()


def openvino_program(folder: Path, form: str, about: Any) -> Run:
    """OpenVINO's frontend for torch.export, with this project's extension."""
    import openvino

    import dcn_ops

    program = _program(folder, about, None)
    return _compiled(openvino.convert_model(program, extension=dcn_ops.openvino.extension()), about)


def openvino_extension(folder: Path, form: str, about: Any) -> Run:
    """OpenVINO's frontend for ONNX, with this project's extension."""
    import openvino

    import dcn_ops

    return _compiled(openvino.convert_model(folder / f"{form}.onnx", extension=dcn_ops.openvino.extension()), about)


def openvino_native(folder: Path, form: str, about: Any) -> Run:
    """OpenVINO's node; the form is "zeros" where corners outside count 0, or "default"."""
    import openvino
    from openvino import opset15 as ops

    tensors, axes = _tensors(folder), about["axes"]
    types = {n: getattr(openvino.Type, n[0] + n[5:]) for n in ("float16", "float32", "float64")}
    kind = {**types, "bfloat16": openvino.Type.bf16}[about["dtype"]]
    outside = types["float64" if about["dtype"] == "float64" else "float32"]

    def parameter(name: str) -> Any:
        shape = [-1 if axis in axes else size for axis, size in enumerate(tensors[name].shape)]
        return ops.parameter(openvino.PartialShape(shape), outside, name=name)

    given = [parameter(name) for name in ("input", "offset", "mask") if name in tensors]
    inside = [ops.convert(p, kind) for p in given]
    weight = ops.convert(ops.constant(tensors["weight"]), kind)
    out = ops.deformable_convolution(
        inside[0],
        inside[1],
        weight,
        about["stride"],
        about["padding"],
        about["padding"],
        about["dilation"],
        mask=inside[2] if len(inside) == 3 else None,
        group=about["groups"],
        deformable_group=about["offset_groups"],
        bilinear_interpolation_pad=form == "zeros",
    )
    if "bias" in tensors:
        out = ops.add(out, ops.convert(ops.constant(tensors["bias"].reshape(1, -1, 1, 1)), kind))
    return _compiled(openvino.Model([ops.convert(out, outside)], given), about)


def ncnn(folder: Path, form: str, about: Any) -> Run:
    """The runtime ncnn, by pnnx; the form is "module" for torchvision's layer, else a way of sampling."""
    import ncnn
    import pnnx
    import torch

    example = [tensor for name, tensor in _tensors(folder).items() if name in ("input", "offset", "mask")]
    if form == "module":
        module, tensors = _torchvision_module(folder, about)
    else:
        import dcn_ops

        layer, tensors = _layer(folder, about, dcn_ops.deform_conv2d)
        program = layer.exported(tensors, ())
        module = program.run_decompositions(dcn_ops.decompositions(form, finite=True)).module()
    with tempfile.TemporaryDirectory() as place:
        torch.jit.trace(module, tensors, check_trace=False).save(Path(place) / "layer.pt")
        shapes = ",".join(str(list(tensor.shape)).replace(" ", "") for tensor in example)
        command = [pnnx.EXEC_PATH, "layer.pt", f"inputshape={shapes}", "fp16=0"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"pnnx: exit code {done.returncode}")
        net = ncnn.Net()
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        status = [net.load_param(f"{place}/layer.ncnn.param"), net.load_model(f"{place}/layer.ncnn.bin")]
    if status != [0, 0]:
        raise RuntimeError(f"ncnn doesn't load what pnnx wrote: {status}")
    return lambda given: _extract(ncnn, net, given)


def _extract(ncnn: Any, net: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    if len(given["x"]) != 1:
        raise ValueError("ncnn's tensors have no batch")
    extractor = net.create_extractor()
    images = [np.ascontiguousarray(tensor[0], np.float32) for tensor in given.values()]  # Mat keeps no array alive
    for i, image in enumerate(images):
        extractor.input(f"in{i}", ncnn.Mat(image).clone())
    status, out = extractor.extract("out0")
    if status != 0:
        raise RuntimeError(f"ncnn: status {status}")
    return np.array(out)[None]


def _torchvision_module(folder: Path, about: Any) -> tuple[Any, tuple[Any, ...]]:
    import torch
    from torchvision.ops import DeformConv2d

    class Net(torch.nn.Module):  # pnnx finds the layer only inside a network
        def __init__(self, layer: DeformConv2d) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.layer(*tensors)

    tensors = _tensors(folder)
    weight = torch.from_numpy(tensors["weight"])
    integers = {name: tuple(about[name]) for name in ("stride", "padding", "dilation")}
    sizes = (about["channels"], len(weight), tuple(about["kernel"]))
    module = DeformConv2d(*sizes, **integers, groups=about["groups"], bias="bias" in tensors)
    module.load_state_dict({n: torch.from_numpy(tensors[n]) for n in ("weight", "bias") if n in tensors})
    module = module.to(getattr(torch, about["dtype"]))
    example = tuple(torch.from_numpy(tensors[n]) for n in ("input", "offset", "mask") if n in tensors)
    return Net(module).eval(), tuple(tensor.to(module.weight.dtype) for tensor in example)


def paddle(folder: Path, form: str, about: Any) -> Run:
    """PaddlePaddle's paddle.vision.ops.deform_conv2d."""
    import paddle
    from paddle.vision.ops import deform_conv2d

    paddle.device.set_device("cpu")
    tensors = {name: paddle.to_tensor(array).astype(about["dtype"]) for name, array in _tensors(folder).items()}
    if "block" in about:
        conv, sigmoid, relu = paddle.nn.functional.conv2d, paddle.nn.functional.sigmoid, paddle.nn.functional.relu

        def deform(x: Any, predicted: Any) -> Any:
            offset, mask = predicted[:, :18], 2 * sigmoid(predicted[:, 18:])
            return deform_conv2d(x, offset, tensors["weight"], None, 1, 1, 1, 1, 1, mask)

        def run_block(given: dict[str, np.ndarray]) -> Any:
            x, operator = paddle.to_tensor(given["x"]), deform if about["block"] == "deformable" else None
            return _block(x, tensors, lambda x, w, padding: conv(x, w, padding=padding), operator, relu).numpy()

        return run_block

    def run(given: dict[str, np.ndarray]) -> Any:
        cast = {name: paddle.to_tensor(array).astype(about["dtype"]) for name, array in given.items()}
        out = deform_conv2d(
            cast["x"],
            cast["offset"],
            tensors["weight"],
            tensors.get("bias"),
            about["stride"],
            about["padding"],
            about["dilation"],
            about["offset_groups"],
            about["groups"],
            cast.get("mask"),
        )
        return out.astype("float64" if about["dtype"] == "float64" else "float32").numpy()

    return run


def mindspore(folder: Path, form: str, about: Any) -> Run:
    """MindSpore's mindspore.ops.deformable_conv2d on the CPU; its offsets and mask are one tensor, x first."""
    import mindspore

    mindspore.set_device("CPU")
    kind = getattr(mindspore, about["dtype"])
    tensors = {name: mindspore.Tensor(array).astype(kind) for name, array in _tensors(folder).items()}
    if "block" in about:
        return _mindspore_block(mindspore, tensors, about)
    (top, left), (sy, sx), (dy, dx) = about["padding"], about["stride"], about["dilation"]

    def run(given: dict[str, np.ndarray]) -> Any:
        n, _, ho, wo = given["offset"].shape
        offset = given["offset"].reshape(n, -1, 2, ho, wo)
        mask = given.get("mask", np.ones_like(offset[:, :, 0]))
        packed = np.concatenate((offset[:, :, 1], offset[:, :, 0], mask), 1)
        out = mindspore.ops.deformable_conv2d(
            mindspore.Tensor(given["x"]).astype(kind),
            tensors["weight"],
            mindspore.Tensor(np.ascontiguousarray(packed)).astype(kind),
            tuple(about["kernel"]),
            (1, 1, sy, sx),
            (top, top, left, left),
            bias=tensors.get("bias"),
            dilations=(1, 1, dy, dx),
            groups=about["groups"],
            deformable_groups=about["offset_groups"],
            modulated=True,
        )
        return out.astype(mindspore.float32).asnumpy()

    return run


def _mindspore_block(mindspore: Any, tensors: dict[str, Any], about: Any) -> Run:
    ops = mindspore.ops

    def conv(x: Any, weight: Any, padding: int) -> Any:
        return ops.conv2d(x, weight, pad_mode="pad", padding=padding)

    def deform(x: Any, predicted: Any) -> Any:
        packed = ops.cat((predicted[:, 1:18:2], predicted[:, 0:18:2], 2 * ops.sigmoid(predicted[:, 18:])), 1)
        ones = (1, 1, 1, 1)
        return ops.deformable_conv2d(x, tensors["weight"], packed, (3, 3), ones, ones, modulated=True)

    operator = deform if about["block"] == "deformable" else None
    return lambda given: _block(mindspore.Tensor(given["x"]), tensors, conv, operator, ops.relu).asnumpy()


def _block(
    x: Any, tensors: dict[str, Any], conv: Callable[..., Any], deform: Callable[..., Any] | None, relu: Any
) -> Any:
    """Compute ``layer.Block`` with the functions of another library."""
    inner = relu(conv(x, tensors["first"], 0))
    if deform is None:
        inner = conv(inner, tensors["weight"], 1)
    else:
        inner = deform(inner, conv(inner, tensors["predictor"], 1))
    return relu(x + conv(relu(inner), tensors["last"], 0))
