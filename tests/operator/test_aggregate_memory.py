"""What an aggregation takes at its peak beside its results, its images within their border, and their gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from aggregates import Case

import dcn_ops
from dcn_ops.sampling.geometry import Padded

LARGE = {
    "few_channels": Case(batch=1, channels=16, size=(300, 300), groups=4),
    "one_channel": Case(batch=1, channels=1, size=(500, 400), groups=1),
    "many_channels": Case(batch=1, channels=64, size=(200, 200), groups=4),
    "batch": Case(batch=6, channels=64, size=(80, 80), groups=4),
}
# As test_memory.py: in a process of its own, resident memory, and glibc gives back what is freed.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
MEASURE = """
import ctypes, sys
from pathlib import Path
import torch
from aggregates import *
import dcn_ops

torch.set_num_threads(1)
case = eval(sys.argv[1])
inputs, numbers = make_inputs(case), case.numbers
op, backward = torch.ops.dcn_ops.deform_aggregate, torch.ops.dcn_ops.deform_aggregate_backward
output = op(*inputs, **numbers)


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


for call in (lambda: [op(*inputs, **numbers)], lambda: backward(output, *inputs, **numbers, needs=[True] * 3)):
    results = sum(t.numel() * t.element_size() for t in call())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    print(resident("VmHWM") - before - results)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of resident memory")
@pytest.mark.parametrize("name", LARGE)
def test_a_call_takes_a_quarter_of_the_workspace_limit(name: str) -> None:
    case, tests = LARGE[name], str(Path(__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.append({tests!r})\n{MEASURE}", repr(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | GIVES_BACK)
    forward, backward = map(int, done.stdout.split())
    image = Padded.of(case.batch, case.size).rows * case.channels * 4
    assert forward <= image + dcn_ops.workspace_limit() // 4
    assert backward <= 2 * image + dcn_ops.workspace_limit() // 4
