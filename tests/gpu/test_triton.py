"""The Triton kernels without a GPU: interpreted, compiled for the architectures that they are for, and traced."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import aggregates
import pytest
import torch
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import (
    kernel_side_table,
    triton_kernel_wrapper_functional,
    triton_kernel_wrapper_mutation,
)
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dcn_ops import registration
from dcn_ops.testing import CASES, Case, make_inputs

triton = pytest.importorskip("triton", reason="Triton has no package for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402

from dcn_ops.conv.kernels.triton import configs, launch  # noqa: E402
from dcn_ops.triton import support, tiles  # noqa: E402

op = torch.ops.dcn_ops.deform_conv2d


@pytest.mark.slow
@pytest.mark.parametrize("file", ["interpreted_kernels.py", "interpreted_pieces.py", "interpreted_aggregate.py"])
def test_interpreted_kernels_are_the_reference(file: str) -> None:
    # The interpreter is chosen when triton is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        # A GPU has no native kernel: without Triton it takes the composition.
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "DCN_OPS_NATIVE": "0"},
    )
    assert done.returncode == 0, done.stdout[-4000:]


class Driver:
    """What torch asks of Triton's driver while it traces: an H100 is where the graph is for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.fx.Graph]:
    """Return a function that traces another on tensors of a GPU that needs not exist."""
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    # Triton 3.9 warns about this default; as an error, it would keep torch from seeing what a kernel writes.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setattr(tiles, "device_of", lambda device: tiles.Device("sm_90", 132))

    def trace(function: Callable, inputs: NamedTuple, sizes: tuple[int, ...] = ()) -> torch.fx.Graph:
        """Return the graph; the dimensions ``sizes`` of image and maps are symbols."""
        found = []

        def record(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
            found.append(module.graph)
            return make_boxed_func(module.forward)

        with FakeTensorMode(shape_env=ShapeEnv()) as mode, torch.no_grad():

            def fake(name: str, tensor: Tensor) -> Tensor:
                kinds = [DimDynamic.STATIC] * tensor.dim()
                if name in ("input", "offset", "mask"):
                    for i in sizes:
                        kinds[i] = DimDynamic.DYNAMIC
                return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(kinds)).cuda()

            tensors = [None if t is None else fake(name, t) for name, t in inputs._asdict().items()]
            # Of symbolic sizes only packages that are compiled ahead of time have kernels; else the node is whole.
            monkeypatch.setattr(registration, "is_ahead_of_time", lambda: bool(sizes))
            aot_function(function, fw_compiler=record, dynamic=bool(sizes))(*tensors)
        return found[0]

    return trace


def kernels_of(graph: torch.fx.Graph) -> list[str]:
    """Return the names of the Triton kernels that a graph launches."""
    nodes = [
        n for n in graph.nodes if n.target in (triton_kernel_wrapper_functional, triton_kernel_wrapper_mutation)
    ]
    kernels = [kernel_side_table.get_kernel(node.kwargs["kernel_idx"]) for node in nodes]
    return [getattr(kernel, "fn", kernel).__name__ for kernel in kernels]


def forward_and_backward(case: Case) -> Callable[..., tuple[Tensor | None, ...]]:
    """Return the two operators in a row: autograd would start a thread for the GPU, which is not there."""

    def function(*inputs: Tensor) -> tuple[Tensor | None, ...]:
        out = op(*inputs, **case.integers)
        return out, *torch.ops.dcn_ops.deform_conv2d_backward(out, *inputs, **case.integers, needs=[True] * 5)

    return function


# What torch takes a kernel to write, and copies before unless it may be overwritten.
WRITTEN = {
    "forward_kernel": {"output_ptr"},
    "samples_kernel": {"grad_input_ptr", "grad_offset_ptr", "grad_mask_ptr"},
    "backward_kernel": {"grad_input_ptr", "grad_offset_ptr", "grad_mask_ptr"},
    "weight_kernel": {"parts_ptr"},
    "unroll_kernel": {"columns_ptr", "grad_offset_ptr", "grad_mask_ptr"},
    "count_kernel": {"count_ptr"},
    "key_kernel": {"key_ptr"},
    "order_kernel": {"next_ptr", "row_ptr", "y_ptr", "x_ptr", "scale_ptr"},
    "gather_kernel": {"grad_input_ptr"},
}
SIZES = (0, 2, 3)  # the dimensions that change with the images
FUSED = ["forward_kernel", "samples_kernel", "weight_kernel"]
BY_COLUMNS = ["count_kernel", "order_kernel", "gather_kernel", "unroll_kernel"]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["all", "depthwise_large", "offset_groups"])
def test_the_compiler_sees_the_kernels(name: str, dynamic: bool, trace: Callable[..., torch.fx.Graph]) -> None:
    inputs = make_inputs(CASES[name], torch.bfloat16)
    graph = trace(forward_and_backward(CASES[name]), inputs, SIZES if dynamic else ())
    assert_kernels(graph, FUSED)
    assert adds_atomically(graph)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_compiler_sees_the_kernels_of_columns(
    dynamic: bool, trace: Callable[..., torch.fx.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    function, inputs = forward_and_backward(CASES["plain"]), make_inputs(CASES["plain"])
    sizes = SIZES if dynamic else ()
    assert_kernels(trace(function, inputs, sizes), ["unroll_kernel", *BY_COLUMNS])
    monkeypatch.setattr(launch, "_COLUMNS", 1)
    graph = trace(function, inputs.map(Tensor.bfloat16), sizes)
    # Of sizes that are symbols nobody can tell whether they are worth it.
    assert_kernels(graph, FUSED if dynamic else ["forward_kernel", *BY_COLUMNS])


def assert_kernels(
    graph: torch.fx.Graph, names: list[str], written: Mapping[str, set[str]] = MappingProxyType({})
) -> None:
    """Assert that a graph holds these kernels, which write what they should, and no operator of this library."""
    assert kernels_of(graph) == names
    launches = [node.kwargs for node in graph.nodes if node.target is triton_kernel_wrapper_functional]
    expected = [{**WRITTEN, **written}[name] for name in names]
    if names[0] == "unroll_kernel":  # a forward, whose maps have no gradient
        expected[0] = {"columns_ptr"}
    assert [set(launch["tensors_to_clone"]) for launch in launches] == expected
    assert not any("dcn_ops" in str(node.target) for node in graph.nodes)


def test_the_compiler_sees_the_gather_of_depthwise_convolutions(
    trace: Callable[..., torch.fx.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_COLUMNS", 1)
    case = CASES["depthwise_large"]
    graph = trace(forward_and_backward(case), make_inputs(case, torch.bfloat16))
    kernels = ["forward_kernel", "count_kernel", "order_kernel", "gather_kernel", "samples_kernel", "weight_kernel"]
    assert_kernels(graph, kernels, {"samples_kernel": WRITTEN["samples_kernel"] - {"grad_input_ptr"}})
    assert not adds_atomically(graph)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("name", "found"), [("all", "_embedding_bag"), ("plain", "sort"), ("depthwise_large", "sort")]
)
def test_deterministic_graphs_hold_no_atomic_additions(
    name: str, found: str, dynamic: bool, trace: Callable[..., torch.fx.Graph]
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        inputs = make_inputs(CASES[name], torch.bfloat16)
        graph = trace(forward_and_backward(CASES[name]), inputs, SIZES if dynamic else ())
    finally:
        torch.use_deterministic_algorithms(False)
    assert not adds_atomically(graph)
    assert any(found in str(node.target) for node in graph.nodes)
    if found == "sort":
        own = ["key_kernel", "order_kernel", "gather_kernel"]
        assert [kernel for kernel in kernels_of(graph) if kernel in WRITTEN.keys() & {*own, "count_kernel"}] == own


def adds_atomically(graph: torch.fx.Graph) -> bool:
    """Tell whether a kernel in the graph writes the gradient of the input; there must be kernels."""
    calls = [n.kwargs for n in graph.nodes if n.target is triton_kernel_wrapper_functional]
    assert calls
    return any(call["kwargs"].get("NEED_INPUT", False) for call in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiler_sees_the_kernels_of_the_aggregation(
    dtype: torch.dtype, trace: Callable[..., torch.fx.Graph]
) -> None:
    case = aggregates.CASES["all"]
    inputs = aggregates.make_inputs(case, dtype)

    def function(*inputs: Tensor) -> tuple[Tensor | None, ...]:
        out = torch.ops.dcn_ops.deform_aggregate(*inputs, **case.numbers)
        backward = torch.ops.dcn_ops.deform_aggregate_backward
        return out, *backward(out, *inputs, **case.numbers, needs=[True] * 3)

    for sizes in ((), (0, 1, 2)):
        graph = trace(function, inputs, sizes)
        assert_kernels(graph, ["forward_kernel", "backward_kernel"])
        assert adds_atomically(graph)
    torch.use_deterministic_algorithms(True)
    try:
        graph = trace(function, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not adds_atomically(graph)


def test_kernels_that_must_not_run_twice_have_one_tile() -> None:
    # Autotuning repeats a kernel. These add to memory that isn't set to zero before, or overwrite what they read.
    once = {"count", "order", "unroll", "depthwise weight"}
    for table in configs.TABLES.values():
        assert {len(table[name]) for name in once} == {1}
    for table in configs.CANDIDATES.values():
        assert not once & table.keys()


def test_a_gpu_without_triton_or_in_float64_takes_the_composition_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with FakeTensorMode():
        images = [torch.empty(1, 4, 4, 8, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.float64)]
    assert [support.unsupported(image) is None for image in images] == [True, False]
    monkeypatch.setattr(support, "is_installed", lambda: False)
    for _ in range(2):
        assert support.unsupported(images[0]) == "Triton is not installed; pip install triton"
    levels = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == support.__name__]
    assert [level for level, _ in levels] == ["INFO", "WARNING"]  # each once
    assert "got input.dtype=torch.float64" in levels[0][1]
    assert "Triton is not installed" in levels[1][1]
