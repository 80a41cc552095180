"""The table of docs/operator.md: what holds for our operator, torchvision's and the plain convolution.

``python tests/operator/test_capabilities.py`` writes it anew; the tests fail where it says what is not so.
"""

import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from graphs import compiled_for_graphs
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from zoo.scripts.storage import markdown

import dcn_ops
import dcn_ops.interop.flops
from dcn_ops.testing import Case, make_inputs

DOCUMENT = Path(__file__).parents[2] / "docs" / "operator.md"
Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return dcn_ops.deform_conv2d(input, offset, weight, bias, (1, 1), (1, 1), (1, 1), mask)


def torchvisions(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, (1, 1), (1, 1), (1, 1), mask)


def plain(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    # Uses every argument, so that what is asked of the others can be asked of it.
    return F.conv2d(input, weight, bias, padding=1) + 0 * (offset.sum() + mask.sum())


FUNCTIONS = {"`dcn_ops`": ours, "`torchvision.ops`": torchvisions, "`F.conv2d`": plain}
OPERATORS = {
    ours: torch.ops.dcn_ops.deform_conv2d.default,
    torchvisions: torch.ops.torchvision.deform_conv2d.default,
    plain: torch.ops.aten.conv2d.default,
}


def inputs(dtype: torch.dtype = torch.float32, **case: object) -> tuple[Tensor, ...]:
    """Return small tensors, off the kinks of the bilinear interpolation."""
    tensors = make_inputs(Case(**{"channels": 4, "size": (5, 4)} | case), dtype)
    return tuple(tensors._replace(offset=tensors.offset + 1 / 64))


def leaves(*args: object, **case: object) -> tuple[Tensor, ...]:
    return tuple(t.requires_grad_() for t in inputs(*args, **case))


def graphs(function: Function) -> list[torch.fx.GraphModule]:
    """Return the forward and the backward graph that a compiler gets."""
    compiled, seen = compiled_for_graphs(function)
    compiled(*leaves()).sum().backward()
    assert len(seen) == 2
    return seen


def compiles(function: Function) -> bool:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    return torch.allclose(compiled(*inputs()), function(*inputs()), atol=1e-5)


def compiler_sees_aten(function: Function) -> bool:
    with dcn_ops.settings(implementation="composition"):
        targets = {node.target for graph in graphs(function) for node in graph.graph.nodes}
    return all(not isinstance(t, torch._ops.OpOverload) or t.namespace in ("aten", "prims") for t in targets)


def compiled_backward_saves_no_columns(function: Function) -> bool:
    forward, _ = graphs(function)
    outputs = next(node for node in forward.graph.nodes if node.op == "output").args[0]
    unrolled = inputs()[0].numel() * 9
    return all(node.meta["val"].numel() < unrolled for node in outputs if isinstance(node, torch.fx.Node))


def one_compile_for_every_size(function: Function) -> bool:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for case in ({"size": (11, 13)}, {"batch": 3, "size": (8, 10)}):
        compiled(*leaves(**case)).sum().backward()
    return counter.frame_count == 1


class Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def exported(function: Function) -> torch.export.ExportedProgram:
    return torch.export.export(Module(function), inputs())


def export_keeps_one_node(function: Function) -> bool:
    program = exported(function).run_decompositions({})
    return [n.target for n in program.graph.nodes].count(OPERATORS[function]) == 1


def decomposes_into_aten(function: Function) -> bool:
    program = exported(function).run_decompositions(dcn_ops.decompositions())
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    return all(t.namespace == "aten" for t in targets if isinstance(t, torch._ops.OpOverload))


def package_runs_without_the_library(function: Function) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        package, arguments = f"{folder}/model.pt2", f"{folder}/arguments.pt"
        torch._inductor.aoti_compile_and_package(exported(function), package_path=package)
        torch.save((inputs(), function(*inputs())), arguments)
        code = (
            "import sys, torch; from torch._inductor import aoti_load_package as load\n"
            f"inputs, expected = torch.load({arguments!r})\n"
            f"assert torch.allclose(load({package!r})(*inputs), expected, atol=1e-5)\n"
            "assert not {'dcn_ops', 'torchvision'} & sys.modules.keys()"
        )
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def survives_torchscript(function: Function) -> bool:
    for convert in (torch.jit.script, lambda f: torch.jit.trace(f, inputs())):
        file = io.BytesIO()
        torch.jit.save(convert(function), file)
        file.seek(0)
        if not torch.equal(torch.jit.load(file)(*inputs()), function(*inputs())):
            return False
    return True


def stays_one_node_in_fx(function: Function) -> bool:
    tensors = ("input", "offset", "weight", "bias", "mask")
    calls = [n for n in torch.fx.symbolic_trace(function).graph.nodes if n.op.startswith("call") and n.args]
    return sum(all(name in map(str, call.args) for name in tensors[2:4]) for call in calls) == 1


def has_right_gradients(function: Function) -> bool:
    return gradcheck(function, leaves(torch.float64), fast_mode=True)


def has_right_second_gradients(function: Function) -> bool:
    return gradgradcheck(function, leaves(torch.float64), fast_mode=True)


def has_forward_derivatives(function: Function) -> bool:
    return gradcheck(
        function, leaves(torch.float64), fast_mode=True, check_forward_ad=True, check_backward_ad=False
    )


def maps_without_a_loop(function: Function) -> bool:
    stacked = [torch.stack((t, 2 * t, 3 * t)) for t in inputs()]
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        out = torch.func.vmap(function)(*stacked)
    # One event for the call that vmap takes, one for the call that it makes.
    if [event.name for event in profiler.events()].count(OPERATORS[function].name()) > 2:
        return False
    return torch.allclose(out, torch.stack([function(*each) for each in zip(*stacked, strict=True)]), atol=1e-5)


def has_gradients_per_sample(function: Function) -> bool:
    input, offset, weight, bias, mask = inputs(batch=3)

    def loss(weight: Tensor, *sample: Tensor) -> Tensor:
        input, offset, mask = (t[None] for t in sample)
        return function(input, offset, weight, bias, mask).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))(weight, input, offset, mask)
    one_by_one = [torch.func.grad(loss)(weight, *sample) for sample in zip(input, offset, mask, strict=True)]
    return torch.allclose(per_sample, torch.stack(one_by_one), rtol=1e-4, atol=1e-4)


def trains_under_autocast(function: Function) -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        out = function(*(tensors := leaves()))
    out.sum().backward()
    return out.dtype == torch.bfloat16 and all(t.grad.dtype == torch.float32 for t in tensors)


def autocast_keeps_positions(function: Function) -> bool:
    # bfloat16 would round the offset to 300, and the sample from 17 to 16.
    image, offset = (torch.arange(320.0) % 8 * 4).view(1, 1, 1, 320), torch.zeros(1, 18, 1, 320)
    offset[:, 9, 0, 0] = 300.25
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1
    with torch.autocast("cpu", torch.bfloat16):
        out = function(image, offset, weight, torch.zeros(1), torch.ones(1, 9, 1, 320))
    return (out[0, 0, 0, 0].item(), out.dtype) == (17, torch.bfloat16)


def runs_in_half_precision(function: Function) -> bool:
    for dtype in (torch.bfloat16, torch.float16):
        out = function(*(tensors := leaves(dtype)))
        out.sum().backward()
        assert {out.dtype, *(t.grad.dtype for t in tensors)} == {dtype}
    return True


def repeats_its_bits(function: Function) -> bool:
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(function(*(t := leaves())).square().sum(), t) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    return all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def counts_flops(function: Function) -> bool:
    with FlopCounterMode(display=False) as counter:
        function(*leaves()).sum().backward()
    return counter.get_total_flops() > 0


def passes_torchs_checks(function: Function) -> bool:
    pairs = [[1, 1]] * 3
    if function is plain:
        input, _, weight, bias, _ = leaves()
        arguments = (input, weight, bias, *pairs, 1)
    elif function is ours:
        arguments = (*leaves(), *pairs, 1, 1)
    else:
        input, offset, weight, bias, mask = leaves()
        arguments = (input, weight, offset, mask, bias, 1, 1, 1, 1, 1, 1, 1, 1, True)
    opcheck(
        OPERATORS[function], arguments, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    return True


def keeps_channels_last(function: Function) -> bool:
    input, *rest = inputs()
    out = function(input.contiguous(memory_format=torch.channels_last), *rest)
    return out.is_contiguous(memory_format=torch.channels_last)


def fake_kernel_refuses_wrong_shapes(function: Function) -> bool:
    with FakeTensorMode() as mode:
        wrong = [mode.from_tensor(t) for t in inputs()]
        # A column of offsets is missing; a channel of the filters.
        wrong[1], wrong[2] = (wrong[1][..., 1:], wrong[2]) if function is not plain else (wrong[1], wrong[2][:, 1:])
        try:
            function(*wrong)
        except (ValueError, RuntimeError):
            return True
    return False


def nan_offset_counts_zero(function: Function) -> bool:
    # Another process: it may not survive.
    code = f"""
import sys, torch
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}  # of this file, and of its helpers
from test_capabilities import *
input, offset, weight, bias, mask = inputs()
offset[:, 3, 2], mask[:, 1, 2] = torch.nan, 1
got = {function.__name__}(input, offset, weight, bias, mask)
offset[:, 3, 2], mask[:, 1, 2] = 0, 0
assert torch.allclose(got, {function.__name__}(input, offset, weight, bias, mask), atol=1e-5)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


ROWS = {
    "`torch.compile(fullgraph=True)`, the result is eager's": compiles,
    "without a native kernel, the compiler sees aten in forward and backward": compiler_sees_aten,
    "compiled, the backward needs no columns in memory": compiled_backward_saves_no_columns,
    "one compilation for every batch, height and width": one_compile_for_every_size,
    "`torch.export` keeps it one node": export_keeps_one_node,
    "... and decomposes it into aten on request": decomposes_into_aten,
    "an AOTInductor package runs where the library is not installed": package_runs_without_the_library,
    "TorchScript: script, trace, save, load": survives_torchscript,
    "one node for `torch.fx`": stays_one_node_in_fx,
    "gradients are right (`gradcheck`)": has_right_gradients,
    "second gradients are right (`gradgradcheck`)": has_right_second_gradients,
    "forward-mode derivatives are right": has_forward_derivatives,
    "`torch.func.vmap` without a loop": maps_without_a_loop,
    "gradients per sample, `vmap(grad(·))`": has_gradients_per_sample,
    "trains under CPU autocast, in bfloat16": trains_under_autocast,
    "... with sampling positions in float32": autocast_keeps_positions,
    "bfloat16 and float16 on the CPU": runs_in_half_precision,
    "bit-equal runs under `use_deterministic_algorithms`": repeats_its_bits,
    "counted by `torch.utils.flop_counter`": counts_flops,
    "passes `torch.library.opcheck`": passes_torchs_checks,
    "channels_last in, channels_last out": keeps_channels_last,
    "the fake kernel refuses wrong shapes": fake_kernel_refuses_wrong_shapes,
    "a NaN offset samples 0": nan_offset_counts_zero,
}
# A convolution has no offsets.
ABOUT_OFFSETS = (autocast_keeps_positions, nan_offset_counts_zero)


def cell(row: str, column: str) -> str:
    if FUNCTIONS[column] is plain and ROWS[row] in ABOUT_OFFSETS:
        return "–"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "yes" if ROWS[row](FUNCTIONS[column]) else "no"
        except (NameError, ImportError):  # of the probe itself
            raise
        except Exception:
            return "no"


def written() -> dict[str, list[str]]:
    lines = (line.strip("| \n").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("|"))
    return {name: cells for name, *cells in lines}


@pytest.mark.parametrize("column", FUNCTIONS)
@pytest.mark.parametrize("row", ROWS)
def test_the_table_tells_what_holds(row: str, column: str) -> None:
    assert cell(row, column) == written()[row][list(FUNCTIONS).index(column)]


def test_everything_holds_for_ours() -> None:
    assert {cells[0] for row, cells in written().items() if row in ROWS} == {"yes"}


if __name__ == "__main__":
    table = [[row, *(cell(row, column) for column in FUNCTIONS)] for row in ROWS]
    markdown.replace_block(DOCUMENT, "table", markdown.table(["", *FUNCTIONS], table))
