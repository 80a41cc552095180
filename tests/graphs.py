"""The graphs that a compiler gets of a function."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func


def compiled_for_graphs(function: Callable) -> tuple[Callable, list[torch.fx.GraphModule]]:
    """Return the compiled function and a list; its first calls add the forward and the backward graph to it."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=record)), graphs


def targets(graph: torch.fx.GraphModule) -> set[object]:
    return {node.target for node in graph.graph.nodes}
