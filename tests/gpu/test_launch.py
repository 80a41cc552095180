"""A launch without a GPU: Triton compiles for an H100, and its driver gets the arguments of each launch."""

import gc
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no package for this platform")

import dcn_ops
from dcn_ops.conv.kernels.triton import plan
from dcn_ops.testing import Case, make_inputs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
op = torch.ops.dcn_ops.deform_conv2d
METADATA, ARGUMENTS = 6, 9  # of a launch: what profilers get, and where the kernel's own arguments begin


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The launches from now on: grid, stream, function, metadata, hooks and the kernel's arguments."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    plan._plan.cache_clear()
    found: list[tuple[Any, ...]] = []
    script = runpy.run_path(str(BENCHMARKS / "without_gpu.py"))
    with script["driver_of_an_h100"](found), dcn_ops.settings(implementation="triton"):
        yield found
        # What was compiled is unloaded by the driver that loaded it.
        plan._plan.cache_clear()
        for kernel in plan.KERNELS.values():
            kernel.device_caches.clear()
        gc.collect()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that Triton is asked for."""
    from triton.runtime.jit import JITFunction

    found, original = [], JITFunction.run

    def run(function: JITFunction, *args: Any, **kwargs: Any) -> Any:
        found.append(function.fn.__name__)
        return original(function, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", run)
    return found


def step(inputs: Any, case: Case) -> tuple[Tensor, ...]:
    out = op(*inputs, **case.integers)
    return out, *torch.ops.dcn_ops.deform_conv2d_backward(out, *inputs, **case.integers, needs=[True] * 5)


def plain(launch: tuple[Any, ...]) -> list[Any]:
    """Return what a launch is told; for tensors, of which results are new in each call, dtypes and shapes."""
    told = (*launch[:METADATA], *launch[METADATA + 1 :])
    return [(a.dtype, a.shape) if isinstance(a, Tensor) else a for a in told]


@pytest.mark.parametrize("groups", [1, 16])
def test_a_repeated_launch_is_the_first_one_without_a_search(
    groups: int, launched: list[tuple[Any, ...]], searches: list[str]
) -> None:
    case = Case(batch=1, channels=16, filters=16, groups=groups)
    inputs = make_inputs(case, torch.bfloat16, layout="channels_last")
    step(inputs, case)
    first = list(map(plain, launched))
    assert searches == ["forward_kernel", "samples_kernel", "weight_kernel"]
    searches.clear()
    launched.clear()
    step(inputs, case)
    assert searches == []
    assert list(map(plain, launched)) == first
    read = [a for a in launched[0][ARGUMENTS:] if isinstance(a, Tensor)]
    assert [a.data_ptr() for a in read[:3]] == [t.data_ptr() for t in (inputs.input, inputs.offset, inputs.mask)]


def test_another_alignment_or_dtype_is_another_kernel(launched: list[tuple[Any, ...]], searches: list[str]) -> None:
    case = Case(batch=1, channels=16, filters=16, bias=False)
    inputs = make_inputs(case, torch.bfloat16, layout="channels_last")
    memory = torch.empty(inputs.input.numel() + 1, dtype=torch.bfloat16)
    shifted = memory[1:].view(inputs.input.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).copy_(inputs.input)
    wide = inputs._replace(offset=inputs.offset.float(), mask=inputs.mask.float())
    for tensors in (inputs, inputs._replace(input=shifted), wide):
        searches.clear()
        for _ in range(2):
            op(*tensors, **case.integers)
        assert searches == ["forward_kernel"]
    op(*inputs, **case.integers)
    assert searches == ["forward_kernel"]


def test_a_hook_before_launches_is_called_each_time(launched: list[tuple[Any, ...]]) -> None:
    case, called = Case(batch=1, channels=16, filters=16), []
    inputs = make_inputs(case, torch.bfloat16, layout="channels_last")
    hooks = plan.KERNELS["forward"].pre_run_hooks
    hooks.append(lambda *args, **kwargs: called.append(1))
    try:
        for _ in range(3):
            op(*inputs, **case.integers)
    finally:
        hooks.clear()
    assert len(called) == 3
    assert len(launched) == 3


def test_the_script_measures_and_profiles(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main: Callable[[], None] = runpy.run_path(str(BENCHMARKS / "gpu_overhead.py"))["main"]
    monkeypatch.setitem(main.__globals__, "CALLS", 2)
    monkeypatch.setitem(main.__globals__, "ROUNDS", 2)
    try:
        monkeypatch.setattr(sys, "argv", ["gpu_overhead.py", "--only", "dense"])
        main()
        monkeypatch.setattr(sys, "argv", ["gpu_overhead.py", "--only", "dense", "--profile", "forward"])
        main()
    finally:
        dcn_ops.set_implementation("auto")
    printed = capsys.readouterr().out
    assert "| deform_conv2d, dense | " in printed
    assert "tottime" in printed
