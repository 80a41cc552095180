"""The files that runtimes read: one folder a case, with its tensors, its integers and its network in every form."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import dcn_ops
from dcn_ops.testing import Inputs

from .cases import Question, calls, example, expected
from .workers.layer import Layer

DTYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
PORTABLE = ("grid_sample", "gather")
OPSETS = (19, 20, 22)


def write(question: Question, folder: Path) -> None:
    """Write a case's tensors and files; a form that its exporter refuses is a text file with the reason."""
    folder.mkdir(parents=True)
    given, answers = calls(question), expected(question)
    for i, (inputs, answer) in enumerate(zip(given, answers, strict=True)):
        np.savez(folder / f"inputs{i}.npz", **_arrays(inputs))
        np.save(folder / f"expected{i}.npy", answer.numpy())
    np.savez(folder / "example.npz", **_arrays(example(question)))
    about = {"dtype": question.dtype, "calls": len(given), "axes": question.axes, **question.shape.integers}
    about |= {"kernel": question.shape.kernel, "channels": question.shape.channels}
    (folder / "about.json").write_text(json.dumps(about))
    for opset in OPSETS:
        _attempt(folder / f"deform{opset}.onnx", lambda file, opset=opset: _deform_conv(question, opset, file))
    for sampling in PORTABLE:
        _attempt(folder / f"{sampling}.onnx", lambda file, sampling=sampling: _portable(question, sampling, file))


def _arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs._asdict().items() if tensor is not None}


def _attempt(file: Path, write_file: Callable[[Path], None]) -> None:
    try:
        write_file(file)
    except Exception as error:  # an exporter may raise anything, and that is an answer
        file.unlink(missing_ok=True)
        file.with_suffix(".txt").write_text(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _deform_conv(question: Question, opset: int, file: Path) -> None:
    """Write the node of the standard with constant weights, in the question's dtype."""
    inputs, conv = example(question), question.shape.conv
    outside, inside = DTYPES["float64" if question.dtype == "float64" else "float32"], DTYPES[question.dtype]
    given = {"x": inputs.input, "offset": inputs.offset, "mask": inputs.mask}
    given = {name: tensor for name, tensor in given.items() if tensor is not None}
    constants = {"weight": inputs.weight, "bias": inputs.bias}
    constants = {name: tensor for name, tensor in constants.items() if tensor is not None}
    cast = inside != outside
    nodes = [helper.make_node("Cast", [n], [f"{n}_"], to=inside) for n in (*given, *constants) if cast]
    name = {n: f"{n}_" if cast else n for n in (*given, *constants)}
    nodes.append(
        helper.make_node(
            "DeformConv",
            [name["x"], name["weight"], name["offset"], name.get("bias", ""), name.get("mask", "")][
                : 5 if "mask" in name else 4 if "bias" in name else 3
            ],
            ["y_" if cast else "y"],
            kernel_shape=list(conv.kernel_size),
            strides=list(conv.stride),
            pads=[*conv.padding, *conv.padding],
            dilations=list(conv.dilation),
            group=conv.groups,
            offset_group=conv.offset_groups,
        )
    )
    if cast:
        nodes.append(helper.make_node("Cast", ["y_"], ["y"], to=outside))
    shape = _symbolic(question, [question.shape.batch, question.shape.filters, *inputs.offset.shape[2:]], "o")
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(n, outside, _symbolic(question, t.shape, n)) for n, t in given.items()],
        [helper.make_tensor_value_info("y", outside, shape)],
        [numpy_helper.from_array(t.numpy(), n) for n, t in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _symbolic(question: Question, shape: Any, name: str) -> list[Any]:
    known = {0: "n", 2: f"{name}_h", 3: f"{name}_w"}
    return [known[axis] if axis in question.axes else int(size) for axis, size in enumerate(shape)]


def _portable(question: Question, sampling: str, file: Path) -> None:
    """Write the layer without the operator, as ``dcn-export decompose=true`` does."""
    inputs = example(question)
    layer = Layer(dcn_ops.deform_conv2d, inputs._asdict(), question.shape.integers, question.dtype).eval()
    tensors = tuple(t for t in (inputs.input, inputs.offset, inputs.mask) if t is not None)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = layer.exported(tensors, question.axes).run_decompositions(dcn_ops.decompositions(sampling))
        torch.onnx.export(
            program,
            (),
            file,
            dynamo=True,
            verbose=False,
            opset_version=20,
            external_data=False,
            input_names=["x", "offset", "mask"][: len(tensors)],
            output_names=["y"],
        )
