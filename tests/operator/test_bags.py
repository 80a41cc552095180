"""Bags of samples and their gradients, against the same sums written out."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dcn_ops.sampling import bags

B, SAMPLES, R = 50, 9, 400
STEPS = (0, 3, 40, 43)


def table(channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Draw the gradient of the sums, the rows, the upper left neighbours of the samples, and their four weights."""
    torch.manual_seed(0)
    row = torch.randint(0, R - STEPS[-1], (B * SAMPLES,), dtype=torch.int32)
    weights = [torch.randn(B * SAMPLES, dtype=dtype) for _ in STEPS]
    return torch.randn(B, channels, dtype=dtype), torch.randn(R, channels, dtype=dtype), row, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 8, 12, 64])
def test_bags_of_four_neighbours_and_their_gradients(channels: int, dtype: torch.dtype) -> None:
    grad, rows, row, weights = table(channels, dtype)
    leaves = [tensor.clone().requires_grad_() for tensor in (rows, *weights)]
    neighbours = zip(leaves[1:], STEPS, strict=True)
    samples = sum(leaves[0][row.long() + step] * weight[:, None] for weight, step in neighbours)
    assert isinstance(samples, Tensor)
    expected = samples.view(B, SAMPLES, channels).sum(1)
    of_rows, *of_weights = torch.autograd.grad(expected, leaves, grad)

    torch.testing.assert_close(bags.gather_corners(rows, row, weights, STEPS, SAMPLES), expected.detach())
    found = bags.corner_weights_backward(grad, rows, row, STEPS, SAMPLES)
    torch.testing.assert_close(torch.stack(found), torch.stack(of_weights))
    total = torch.zeros_like(rows)
    bags.scatter_corners(total, grad, row, weights, STEPS, SAMPLES)
    torch.testing.assert_close(total, of_rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 8, 12, 64])
def test_eager_gradient_of_weights_is_the_compilers(channels: int, dtype: torch.dtype) -> None:
    grad, rows, *_ = table(channels, dtype)
    row = torch.randint(0, R, (B * SAMPLES * 4,), dtype=torch.int32)
    expected = (rows[row.long()].view(B, -1, channels) * grad[:, None]).sum(2).flatten()
    for backward in (bags.weight_backward, bags.eager_weight_backward):
        torch.testing.assert_close(backward(grad, rows, row, SAMPLES), expected)


TRAIN = """
import torch, dcn_ops

images = torch.randn(1, 6, 6, 16, requires_grad=True)
with dcn_ops.settings(implementation="composition"):
    dcn_ops.DCNv4(16, group=1)(images).sum().backward()
    dcn_ops.DeformConv2d(16, 8, 3)(images.permute(0, 3, 1, 2)).sum().backward()
print(tuple(images.grad.shape))
"""


def test_training_by_the_composition_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "error", "-c", TRAIN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(1, 6, 6, 16)\n", "")
