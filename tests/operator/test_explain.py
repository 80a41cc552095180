"""Which implementation a call takes, and why not the others, is what happens."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import dcn_ops
from dcn_ops.conv.kernels import columns, cpu, depthwise, inductor, tiny, traced
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.kernels import Kernel
from dcn_ops.native import library
from dcn_ops.testing import CASES, Case, make_inputs

LARGE = Case(batch=2, channels=6, filters=6, size=(60, 60))
EXPECTED = {  # the case, whether it is compiled, and what it takes
    "small": (CASES["plain"], False, tiny),
    "small compiled": (CASES["plain"], True, traced),
    "large": (LARGE, False, columns),
    "depthwise": (replace(LARGE, groups=6), False, columns),
    "depthwise 5x5": (replace(LARGE, groups=6, kernel=(5, 5), padding=(2, 2)), False, depthwise),
    "depthwise compiled": (replace(LARGE, groups=6), True, inductor),
}
NATIVE = {"small": (CASES["plain"], False), "depthwise compiled": (replace(LARGE, groups=6), True)}


def explained(case: Case, compiled: bool = False) -> dcn_ops.Explanation:
    input, offset, weight, bias, mask = make_inputs(case)
    return dcn_ops.explain(
        input, offset, weight, bias, case.stride, case.padding, case.dilation, mask, compiled=compiled
    )


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.usefixtures("no_native")
def test_what_is_explained_is_what_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_explained_is_run(*EXPECTED[name], monkeypatch)


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_kernel_comes_first_where_there_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(reason := library.library(), str):
        pytest.skip(f"no native kernel: {reason}")
    assert_explained_is_run(*NATIVE[name], cpu, monkeypatch)
    assert explained(LARGE).refused["tiny"] == "it takes images of a few pixels"
    assert explained(LARGE).refused["columns"] == "native comes first"


def assert_explained_is_run(
    case: Case, compiled: bool, kernel: Kernel[Problem, Gradients], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for module in (columns, cpu, depthwise, inductor, tiny, traced):
        original = module.forward
        monkeypatch.setattr(module, "forward", lambda problem, m=module, f=original: called.append(m) or f(problem))
    operator: Callable = torch.ops.dcn_ops.deform_conv2d
    torch._dynamo.reset()
    if compiled:
        operator = torch.compile(operator, fullgraph=True, backend="aot_eager")
    operator(*make_inputs(case), **case.integers)
    assert explained(case, compiled).taken == kernel.NAME
    assert set(called) == {kernel}  # a compiler traces more than once


@pytest.mark.usefixtures("no_native")
def test_the_others_have_a_reason() -> None:
    explanation = explained(LARGE)
    assert explanation.refused == {
        "triton": "Triton kernels need a GPU, got input.device=cpu; move the tensors with .cuda()",
        "native": "there is no native kernel: there is no compiler",
        "tiny": "it takes images of a few pixels",
        "depthwise": "it takes depthwise convolutions",
    }
    assert str(explanation).splitlines()[0] == "columns: yes"
    assert "tiny: no, it takes images of a few pixels" in str(explanation)
    assert explained(CASES["plain"]).refused["columns"] == "tiny comes first"


@pytest.mark.usefixtures("no_native")
def test_the_settings_count() -> None:
    with dcn_ops.settings(implementation="composition"):
        assert explained(LARGE).refused["triton"] == "the implementation is set to 'composition'"
    with dcn_ops.settings(implementation="triton"):
        explanation = explained(LARGE)
    assert explanation.taken is None
    assert str(explanation).startswith("the call raises an error\ntriton: no, Triton kernels need a GPU")
    with dcn_ops.whole_operators():
        assert explained(CASES["plain"], compiled=True).taken == "tiny"


def test_a_kernel_of_another_library_is_named() -> None:
    with torch.library._scoped_library("dcn_ops", "IMPL") as library:
        library.impl("deform_conv2d", lambda *args: args[0], "CPU")
        assert explained(LARGE).taken == "a kernel that another library registered"


def test_wrong_arguments_raise_as_in_the_call() -> None:
    with pytest.raises(ValueError, match=r"offset\.shape"):
        dcn_ops.explain(torch.zeros(1, 2, 5, 5), torch.zeros(1, 18, 4, 4), torch.zeros(2, 2, 3, 3))
