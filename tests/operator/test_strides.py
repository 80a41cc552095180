"""Strides that say nothing: of dimensions of size 1."""

import pytest
import torch

from dcn_ops.testing import Case, make_inputs, run

op = torch.ops.dcn_ops.deform_conv2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [2, 64])
@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (1, 1)])
def test_strides_of_dimensions_of_size_1_say_nothing(
    kernel: tuple[int, int], groups: int, dtype: torch.dtype
) -> None:
    """Torch's convolutions read the memory format off them; these are large enough for its fast ones."""
    case = Case(channels=64, filters=64, size=(40, 40), kernel=kernel, groups=groups, offset_groups=2, bias=False)
    contiguous, odd = (make_inputs(case, dtype, layout=layout) for layout in ("contiguous", "unit_strides"))
    assert torch.equal(contiguous.weight, odd.weight)
    expected, actual = (run(op, inputs, **case.integers) for inputs in (contiguous, odd))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0.01, atol=0.01 * value.abs().max().item(), msg=name)
