"""A step in a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_replays(step: Callable[[], list[Tensor]], image: Tensor) -> None:
    """Capture a step, change the image that it reads, and expect of the graph what the step gives then."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        image.mul_(2)
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-3)
