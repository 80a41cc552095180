"""int8 for ordinary convolutions. Deformable layers and the convolutions that predict their offsets stay float.

Quantised positions would be wrong by whole pixels.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d


def program(model: nn.Module, example: Tensor, calibration: Tensor, axes: tuple[int, ...]) -> Any:
    """Return the program of a model, quantised by PT2E for Inductor on x86.

    Args:
        model: In eval mode.
        example: [N, C, H, W], with N at least 2 if the batch is dynamic.
        calibration: Real images [N, C, H, W].
        axes: The dynamic axes.
    """
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dims = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    # 7 bits: on a CPU without VNNI, int8 sums of two 8-bit products saturate.
    scheme = x86.get_default_x86_inductor_quantization_config(reduce_range=True)
    quantizer = x86.X86InductorQuantizer().set_global(scheme)
    for name, module in model.named_modules():
        if isinstance(module, DeformConv2d):
            quantizer.set_module_name_qconfig(name, None)
    exported = torch.export.export(model, (example,), dynamic_shapes=dims).module()
    prepared = prepare_pt2e(exported, quantizer)
    for images in calibration.split(len(example)):
        prepared(images)
    converted = move_exported_model_to_eval(convert_pt2e(prepared))
    return torch.export.export(converted, (example,), dynamic_shapes=dims)


def onnx(file: Path, calibration: Tensor) -> None:
    """Quantise an ONNX file in place with ONNX Runtime's static scheme: QDQ nodes, one scale per channel."""
    import onnx as onnx_package
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images: Iterator[Tensor] = iter(calibration.split(1))

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.images, None)
            return None if images is None else {"images": images.numpy()}

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=_predictors(onnx_package.load(prepared)),
        )


def _predictors(model: Any) -> list[str]:
    """Return the convolutions that compute the offsets and masks of DeformConv nodes."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found, seen = [], set[str]()
    todo = [name for node in model.graph.node if node.op_type == "DeformConv" for name in node.input[2:]]
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.append(node.name)
            # A separable predictor is two convolutions: depthwise, then 1x1.
            before = makers.get(node.input[0])
            if before is not None and before.op_type == "Conv" and _is_pointwise(model, node):
                todo.append(node.input[0])
        else:
            todo += node.input
    return found


def _is_pointwise(model: Any, node: Any) -> bool:
    weight = next((tensor for tensor in model.graph.initializer if tensor.name == node.input[1]), None)
    return weight is not None and list(weight.dims[2:]) == [1, 1]
