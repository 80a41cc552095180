"""The first operator of an AOTInductor package: it checks the input, and copies it to the exported layout.

Inductor's code doesn't check rank, sizes, strides and dtype of its inputs. So the first operator of an exported
network is ours. Its native kernel is compiled into the package, where it gets the tensor unchanged. Images of any
memory layout and floating dtype give the right scores, another shape gives an error, in Python and in C++.
"""

from typing import Any

import torch
from torch import Tensor, nn


@torch.library.custom_op("dcn_deploy::as_exported", mutates_args=())
def as_exported(images: Tensor) -> Tensor:
    """Return a contiguous copy."""
    return images.clone(memory_format=torch.contiguous_format)


@as_exported.register_fake
def _(images: Tensor) -> Tensor:
    return torch.empty(images.shape, dtype=images.dtype, device=images.device)


class Checked(nn.Module):
    """A network whose images [N, C, H, W] pass through the operator first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """Return the network's outputs for images."""
        return self.model(as_exported(images))


# Written with the stable C interface that packages link to. Inductor derives this name from the operator's.
_KERNEL = """
__attribute__((visibility("hidden")))
AOTITorchError aoti_torch_cpu_as_exported(AtenTensorHandle images, AtenTensorHandle* result) {
  const int64_t expected[] = {%s};  // -1: any
  constexpr int64_t rank = sizeof(expected) / sizeof(expected[0]);
  int64_t dimensions = 0;
  int64_t* sizes = nullptr;
  int32_t dtype = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(images, &dimensions));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(images, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(images, &dtype));
  bool fits = dimensions == rank;
  for (int64_t i = 0; fits && i < rank; ++i) fits = expected[i] < 0 || expected[i] == sizes[i];
  if (!fits) {
    std::stringstream message;
    message << "expected images of the shape exported, [";
    for (int64_t i = 0; i < rank; ++i)
      message << (i ? ", " : "") << (expected[i] < 0 ? "any" : std::to_string(expected[i]));
    message << "], got [";
    for (int64_t i = 0; i < dimensions; ++i) message << (i ? ", " : "") << sizes[i];
    message << "]; resize them, or export with dynamic=size";
    throw std::runtime_error(message.str());
  }
  if (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64() &&
      dtype != aoti_torch_dtype_float16() && dtype != aoti_torch_dtype_bfloat16())
    throw std::runtime_error("expected images of a floating dtype, normalised as for training, got dtype number " +
                             std::to_string(dtype) + " of c10::ScalarType; convert them to float32");
  int64_t strides[rank];
  for (int64_t i = rank - 1, stride = 1; i >= 0; stride *= sizes[i--]) strides[i] = stride;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      rank, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, result));
  return aoti_torch_copy_(*result, images, 0);
}
"""


def settings(images: Tensor, axes: tuple[int, ...]) -> dict[str, Any]:
    """Return Inductor's settings that compile the operator's native kernel into a package.

    Args:
        images: The example of the export, [N, C, H, W], contiguous float32.
        axes: The dynamic axes.
    """
    sizes = ", ".join(str(-1 if axis in axes else size) for axis, size in enumerate(images.shape))
    return {"aot_inductor.custom_ops_to_c_shims": {torch.ops.dcn_deploy.as_exported.default: [_KERNEL % sizes]}}
