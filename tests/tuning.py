"""What autotuning must not do."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import dcn_ops


def assert_tuning_changes_nothing(
    gradients: Callable[[], Sequence[Tensor | None]], inputs: Sequence[Tensor], needs: Sequence[bool]
) -> None:
    """Expect the same gradients with autotuning, which calls each kernel several times, and the same inputs."""
    expected = gradients()
    kept = [tensor.clone() for tensor in inputs]
    with dcn_ops.settings(autotune=True):
        actual = gradients()
    assert all(map(torch.equal, inputs, kept))
    for one, other, needed in zip(actual, expected, needs, strict=True):
        assert torch.equal(one, other) if needed else one is None
