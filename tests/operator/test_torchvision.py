"""The cases that torchvision tests its operator with, and our function and layer in the place of its own."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from torch import Tensor
from torch.autograd import gradcheck

import dcn_ops

CHANNELS, FILTERS, GROUPS, OFFSET_GROUPS = 6, 2, 2, 3
KERNEL, STRIDE, PADDING, DILATION = (3, 2), (2, 1), (1, 0), (2, 1)
HEIGHT, WIDTH = 5, 4
OUT_HEIGHT, OUT_WIDTH = 2, 3
BATCHES = (0, 33)


pytestmark = pytest.mark.usefixtures("implementation")


def draw(batch: int, contiguous: bool = True) -> list[Tensor]:
    """Return input, offset, weight, bias and mask in float64."""
    taps = OFFSET_GROUPS * KERNEL[0] * KERNEL[1]
    shapes = (
        (batch, CHANNELS, HEIGHT, WIDTH),
        (batch, 2 * taps, OUT_HEIGHT, OUT_WIDTH),
        (FILTERS, CHANNELS // GROUPS, *KERNEL),
        (FILTERS,),
        (batch, taps, OUT_HEIGHT, OUT_WIDTH),
    )
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if not contiguous:
        tensors = [t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1]) for t in tensors]
    return tensors


def by_loops(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Add up term by term, position by position."""
    out = bias[:, None, None].repeat(len(input), 1, OUT_HEIGHT, OUT_WIDTH).view(-1, FILTERS, OUT_HEIGHT, OUT_WIDTH)
    for n, o, c, i, j, y, x in indices(len(input)):
        group = c // (CHANNELS // OFFSET_GROUPS)
        tap = (group * KERNEL[0] + i) * KERNEL[1] + j
        at_y = y * STRIDE[0] - PADDING[0] + i * DILATION[0] + offset[n, 2 * tap, y, x].item()
        at_x = x * STRIDE[1] - PADDING[1] + j * DILATION[1] + offset[n, 2 * tap + 1, y, x].item()
        sample = bilinear(input[n, c], at_y, at_x) * (1 if mask is None else mask[n, tap, y, x])
        out[n, o, y, x] += weight[o, c % (CHANNELS // GROUPS), i, j] * sample
    return out


def indices(batch: int) -> Iterator[tuple[int, ...]]:
    """Yield image, filter, channel of its group, tap row and column, output row and column."""
    of_group = FILTERS // GROUPS
    for at in torch.cartesian_prod(
        *map(torch.arange, (batch, FILTERS, CHANNELS, *KERNEL, OUT_HEIGHT, OUT_WIDTH))
    ).tolist():
        if at[1] // of_group == at[2] // (CHANNELS // GROUPS):
            yield tuple(at)


def bilinear(image: Tensor, y: float, x: float) -> float:
    top, left = int(y // 1), int(x // 1)
    total = 0.0
    for row, col in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < HEIGHT and 0 <= col < WIDTH:
            total += (1 - abs(y - row)) * (1 - abs(x - col)) * image[row, col].item()
    return total


def function(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    return dcn_ops.deform_conv2d(
        input, offset, weight, bias, stride=STRIDE, padding=PADDING, dilation=DILATION, mask=mask
    )


def layer(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    module = dcn_ops.DeformConv2d(CHANNELS, FILTERS, KERNEL, STRIDE, PADDING, DILATION, GROUPS).double()
    module.weight.data, module.bias.data = weight, bias
    return module(input, offset, mask) if mask is not None else module(input, offset)


@pytest.mark.parametrize("call", [function, layer])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_forward_is_the_sum_over_its_terms(call: Callable, masked: bool, contiguous: bool, batch: int) -> None:
    *tensors, mask = draw(batch, contiguous)
    arguments = (*tensors, mask if masked else None)
    expected = by_loops(
        *(None if t is None else t[:3] if t.dim() == 4 and len(t) == batch else t for t in arguments)
    )
    actual = call(*arguments)
    assert actual.shape == (batch, FILTERS, OUT_HEIGHT, OUT_WIDTH)
    torch.testing.assert_close(actual[:3], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_are_those_of_finite_differences(masked: bool, contiguous: bool, batch: int) -> None:
    *tensors, mask = (t.requires_grad_() for t in draw(batch, contiguous))
    assert gradcheck(function, (*tensors, mask if masked else None), nondet_tol=1e-5, fast_mode=True)


def test_the_scripted_function_has_the_same_gradients() -> None:
    @torch.jit.script
    def scripted(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return dcn_ops.deform_conv2d(
            input, offset, weight, bias, stride=(2, 1), padding=(1, 0), dilation=(2, 1), mask=mask
        )

    tensors = [t.requires_grad_() for t in draw(2)]
    assert torch.equal(scripted(*tensors), function(*tensors))
    assert gradcheck(scripted, tensors, nondet_tol=1e-5, fast_mode=True)


def test_one_offset_group_moves_only_its_channels() -> None:
    # One offset per group for a 1x1 kernel: the second half of the channels looks one pixel to the right.
    input, offset = torch.arange(24.0).view(1, 4, 2, 3), torch.zeros(1, 4, 2, 3)
    offset[:, 3] = 1
    out = dcn_ops.deform_conv2d(input, offset, torch.eye(4)[:, :, None, None])
    assert torch.equal(out[:, :2], input[:, :2])
    assert torch.equal(out[:, 2:, :, :2], input[:, 2:, :, 1:])


def test_the_layer_stands_where_torchvisions_stood() -> None:
    theirs = torchvision.ops.DeformConv2d(CHANNELS, FILTERS, KERNEL, STRIDE, PADDING, DILATION, GROUPS).double()
    ours = dcn_ops.DeformConv2d(CHANNELS, FILTERS, KERNEL, STRIDE, PADDING, DILATION, GROUPS, predict_offsets=False)
    ours.double().load_state_dict(theirs.state_dict())
    input, offset, _, _, mask = draw(3)
    for arguments in ((input, offset), (input, offset, mask)):
        torch.testing.assert_close(ours(*arguments), theirs(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", ["offset", "mask"])
def test_a_wrong_number_of_channels_is_refused(wrong: str) -> None:
    input, offset, weight, bias, mask = draw(33)
    arguments = {"offset": offset, "mask": mask} | {wrong: {"offset": offset, "mask": mask}[wrong][:, :-1]}
    with pytest.raises(ValueError, match=f"expected {wrong}"):
        function(input, arguments["offset"], weight, bias, arguments["mask"])
