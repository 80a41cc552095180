"""The code that Inductor writes of the loops: nothing slow in it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code

import dcn_ops
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.geometry import Padded

N, C, H, W, G = 2, 32, 9, 7, 2


def aggregation() -> tuple[Callable[..., Any], list[torch.Tensor]]:
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), G, 0.5, False)
    images, samples = (N, H, W), G * window.taps
    tensors = [torch.randn(*images, C), torch.randn(*images, 2 * samples), torch.rand(*images, samples)]
    return lambda input, offset, mask: torch.ops.dcn_ops.deform_aggregate(input, offset, mask, *window), tensors


def depthwise() -> tuple[Callable[..., Any], list[torch.Tensor]]:
    maps = [torch.randn(N, C, H, W), torch.randn(N, G * 18, H, W), torch.rand(N, G * 9, H, W)]
    pairs = (1, 1), (1, 1), (1, 1)

    def conv(input: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        return torch.ops.dcn_ops.deform_conv2d(input, offset, filters, None, mask, *pairs, C, G)

    return conv, [*(tensor.to(memory_format=torch.channels_last) for tensor in maps), torch.randn(C, 1, 3, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("operator", [aggregation, depthwise])
@pytest.mark.parametrize("training", [False, True])
def test_loops_are_vectorised_and_pad_the_image_once(operator: Callable[..., Any], training: bool) -> None:
    function, tensors = operator()
    leaves = [tensor.requires_grad_(training) for tensor in tensors]
    torch._dynamo.reset()
    with dcn_ops.settings(implementation="composition"), fresh_cache():
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def call() -> None:
            out = compiled(*leaves)
            if training:
                out.sum().backward()

        _, graphs = run_and_get_code(call)
    assert len(graphs) == 1 + training
    rows = Padded.of(N, (H, W)).rows
    for code in graphs:
        assert ".floor()" in code  # vectors compute where samples read,
        assert "std::floor" not in code
        # and one loop over whole pixels pads the image.
        assert len(re.findall(rf"empty_strided_cpu\(\({rows}, {C}\)", code)) == 1
