"""The operator on a GPU, where it runs the same composition."""

import pytest
import torch

from dcn_ops import DeformConv2d
from dcn_ops.testing import Case, assert_within_budget, make_inputs, oracle, run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_output_and_gradients_are_the_references(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype)
    actual = run(torch.ops.dcn_ops.deform_conv2d, inputs.map(lambda t: t.cuda()), **case.integers)
    on_cpu = {name: tensor.cpu() for name, tensor in actual.items()}
    assert_within_budget(on_cpu, *oracle(inputs, case.conv, dtype))


def test_a_layer_trains_under_autocast() -> None:
    layer = DeformConv2d(8, 8, 3, padding=1).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(torch.randn(2, 8, 9, 9, device="cuda"))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.offset_weight.grad.norm() > 0


def test_a_tensor_on_another_device_is_named() -> None:
    layer = DeformConv2d(8, 8, 3, padding=1).cuda()
    with pytest.raises(ValueError, match=r"expected offset on the input's device cuda:0, got offset\.device=cpu"):
        layer(torch.randn(1, 8, 5, 5, device="cuda"), torch.zeros(1, 18, 5, 5))
