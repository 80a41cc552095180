"""The library of the native kernel: checked when it is loaded, built once, and done without where it can't be."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcn_ops.aggregate import reference as aggregate
from dcn_ops.aggregate.window import Window
from dcn_ops.conv import reference
from dcn_ops.native import build, check
from dcn_ops.sampling.geometry import Conv
from dcn_ops.testing import Inputs

ROOT = Path(__file__).parents[2]
HAS_COMPILER = shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")


@pytest.mark.parametrize("case", check.CASES)
def test_the_check_expects_what_the_reference_computes(case: check.Case) -> None:
    values = {n: torch.tensor(check.values(n, size)).double() for n, size in case.sizes.items()}

    def from_channels_last(name: str, channels: int, size: tuple[int, int]) -> Tensor:
        return values[name].view(1, *size, channels).permute(0, 3, 1, 2)

    conv = Conv(check.KERNEL, (1, 1), check.PADDING, (1, 1), case.groups, case.offset_groups)
    inputs = Inputs(
        from_channels_last("input", case.channels, check.SIZE),
        values["offset"].view(1, -1, *check.OUT),
        values["weight"].view(case.filters, -1, *check.KERNEL),
        values["bias"],
        values["mask"].view(1, -1, *check.OUT),
    ).map(lambda t: t.detach().requires_grad_())
    out = reference.forward(*inputs, conv=conv)
    wanted = (inputs.input, inputs.offset, inputs.weight, inputs.mask)
    gradients = torch.autograd.grad(out, wanted, from_channels_last("grad", case.filters, check.OUT))
    stored = [t.permute(0, 2, 3, 1) if t is not gradients[2] else t for t in (out.detach(), *gradients)]
    sums = tuple(float(sum((i % 31 + 1) * v for i, v in enumerate(t.flatten().tolist()))) for t in stored)
    assert sums == case.expected


@pytest.mark.parametrize("case", check.AGGREGATIONS)
def test_the_check_of_the_aggregation_expects_what_its_reference_computes(case: check.Aggregation) -> None:
    values = {n: torch.tensor(check.values(n, size)).double() for n, size in case.sizes.items()}
    input, offset, mask, _, grad = (t.view(1, *check.SIZE, -1) for t in values.values())
    leaves = [t.detach().requires_grad_() for t in (input, offset, mask)]
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), case.groups, case.offset_scale, True)
    out = aggregate.forward(*leaves, window)
    results = out.detach(), *torch.autograd.grad(out, leaves, grad)
    assert tuple(check.checksum(t.flatten().tolist()) for t in results) == case.expected


# Building, in processes of their own: what is found is found once for a process.

RUN = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
import torch, dcn_ops
from dcn_ops.testing import CASES, assert_within_budget, make_inputs, oracle, run
for name in ("plain", "depthwise"):
    case = CASES[name]
    inputs = make_inputs(case)
    for _ in range(2):
        actual = run(torch.ops.dcn_ops.deform_conv2d, inputs, **case.integers)
        assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))
input, offset, weight, bias, mask = inputs
print("taken:", dcn_ops.explain(input, offset, weight, bias, padding=case.padding, mask=mask).taken)
"""


def start(cache: Path, **environment: str) -> subprocess.Popen:
    whole = {name: value for name, value in os.environ.items() if name != "DCN_OPS_NATIVE"}
    whole |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", RUN], env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def libraries(cache: Path) -> list[Path]:
    return sorted((cache / "dcn_ops").iterdir())


def said_once(said: str, reason: str) -> bool:
    """Tell whether the composition ran, with one line that says why."""
    lines = [line for line in said.splitlines() if line.startswith("WARNING")]
    assert "taken: native" not in said, said
    return len(lines) == 1 and reason in lines[0]


@needs_compiler
def test_it_is_built_once_and_a_broken_library_is_built_again(tmp_path: Path) -> None:
    said = finish(start(tmp_path))
    assert "INFO building" in said
    assert "taken: native" in said
    (built,) = libraries(tmp_path)
    assert (tmp_path / "dcn_ops").stat().st_mode & 0o777 == 0o700
    assert "INFO" not in finish(start(tmp_path))
    content = built.read_bytes()
    changed = bytes(byte ^ 255 for byte in content[5000:5100])
    for broken in (content[: len(content) // 2], content[:5000] + changed + content[5100:], b""):
        built.write_bytes(broken)
        said = finish(start(tmp_path))
        assert "INFO building" in said
        assert "taken: native" in said
        assert build.is_whole(built)


@needs_compiler
def test_a_library_that_computes_something_else_is_built_again(tmp_path: Path) -> None:
    finish(start(tmp_path))
    (built,) = libraries(tmp_path)
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text(
        'extern "C" { long dcn_abi_version() { return 2; } int dcn_convolve(void*) { return 0; }'
        " int dcn_convolve_backward(void*) { return 0; } int dcn_aggregate(void*) { return 0; }"
        " int dcn_aggregate_backward(void*) { return 0; } }"
    )
    subprocess.run([HAS_COMPILER, "-shared", "-fPIC", str(wrong), "-o", str(built)], check=True)
    built.write_bytes(built.read_bytes() + hashlib.sha256(built.read_bytes()).digest())
    said = finish(start(tmp_path))
    assert "is built again: the library computes" in said
    assert "taken: native" in said


@needs_compiler
def test_two_processes_may_build_at_the_same_time(tmp_path: Path) -> None:
    both = [start(tmp_path) for _ in range(2)]
    assert all("taken: native" in finish(process) for process in both)
    (built,) = libraries(tmp_path)
    assert build.is_whole(built)


def test_without_a_compiler_the_composition_runs(tmp_path: Path) -> None:
    assert said_once(finish(start(tmp_path, PATH="", CXX="")), "there is no C++ compiler; install g++ or clang++")


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho 'error: no space' >&2\nexit 1\n")
    compiler.chmod(0o755)
    assert said_once(finish(start(tmp_path, CXX=str(compiler))), f"{compiler} failed (error: no space)")
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert libraries(tmp_path) == []


@needs_compiler
def test_a_cache_that_cannot_be_used_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert said_once(finish(start(tmp_path / "file")), "can't be used")
    (tmp_path / "dcn_ops").mkdir()
    (tmp_path / "dcn_ops").chmod(0o777)
    assert said_once(finish(start(tmp_path)), "others may write into")


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into every folder")
def test_a_folder_that_is_read_only_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert said_once(finish(start(tmp_path)), "can't be used")


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    said = finish(start(tmp_path, DCN_OPS_NATIVE="0"))
    assert "WARNING" not in said
    assert "taken: native" not in said
    assert not (tmp_path / "dcn_ops").exists()


@needs_compiler
@pytest.mark.skipif(not shutil.which("nm") or sys.platform != "linux", reason="nm of binutils reads the symbols")
def test_a_library_shares_no_symbol_with_another_version(tmp_path: Path) -> None:
    finish(start(tmp_path))
    command = ["nm", "-D", "--defined-only", *libraries(tmp_path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = {name: kind for _, kind, name in map(str.split, listed.splitlines())}
    assert "u" not in symbols.values()  # one for all libraries of the process
    own = {name for name in symbols if not name.startswith("_ZNSt")}  # functions of the standard library
    functions = ("convolve", "convolve_backward", "aggregate", "aggregate_backward")
    assert own == {"dcn_abi_version", *(f"dcn_{name}" for name in functions)}


# Memory errors

SANITIZED = """
import runpy, sys
import torch
from dcn_ops.native import build
build._FLAGS = (*build._FLAGS, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
import dcn_ops
from dcn_ops.native.library import library
from dcn_ops.testing import CASES, make_inputs, run
sys.path.append("tests")
import aggregates
SHAPES = runpy.run_path("tests/operator/test_native.py")["SHAPES"]
AGGREGATED = runpy.run_path("tests/operator/test_aggregate_native.py")["SHAPES"]
reason = library()
assert not isinstance(reason, str), reason
with dcn_ops.settings(implementation="native"):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for case in (*CASES.values(), *SHAPES.values()):
            for layout in ("contiguous", "channels_last", "strided"):
                if case.batch:
                    run(torch.ops.dcn_ops.deform_conv2d, make_inputs(case, layout=layout), **case.integers)
        for case in (*aggregates.CASES.values(), *AGGREGATED.values()):
            if case.batch:
                aggregates.run(torch.ops.dcn_ops.deform_aggregate, aggregates.make_inputs(case), **case.numbers)
print("clean")
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_sanitizers_find_nothing(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    name = "libasan.so" if compiler == "g++" else "libclang_rt.asan-x86_64.so"
    # The sanitizer asks for the exceptions of C++, which Python does not link.
    found = [
        subprocess.run([compiler, f"-print-file-name={file}"], capture_output=True, text=True, check=True)
        for file in (name, "libstdc++.so.6")
    ]
    preloaded = [one.stdout.strip() for one in found]
    if not all(map(os.path.isabs, preloaded)):
        pytest.skip(f"{compiler} has no {name}")
    environment = os.environ | {
        "DCN_OPS_NATIVE": "1",
        "CXX": compiler,
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": " ".join(preloaded),
        # Python and torch keep what they allocate.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("clean\n"), done.stdout[-500:] + done.stderr[-3000:]
