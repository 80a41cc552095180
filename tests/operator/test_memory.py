"""What a call takes at its peak beside its results, its images within their border, and their gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dcn_ops
from dcn_ops.sampling.geometry import Padded
from dcn_ops.testing import Case

# Few channels on large images, where tables and sorts weigh more than columns; and many.
LARGE = {
    "dense": Case(batch=1, channels=16, filters=16, size=(300, 300)),
    "depthwise": Case(batch=1, channels=16, filters=16, size=(300, 300), groups=16),
    "offset_groups": Case(batch=1, channels=16, filters=16, size=(200, 200), offset_groups=4),
    "one_channel": Case(batch=1, channels=1, filters=4, size=(500, 400)),
    "many_channels": Case(batch=1, channels=64, filters=32, size=(200, 200)),
    "batch": Case(batch=6, channels=32, filters=16, size=(100, 100)),
}
# In a process of its own, whose memory nobody used before. Resident, so that what libraries allocate counts; and
# glibc gives back what is freed, for the holes that it keeps otherwise differ by 20 MiB from process to process.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
MEASURE = """
import ctypes, sys
from pathlib import Path
import torch
from dcn_ops.testing import *

torch.set_num_threads(1)
case = eval(sys.argv[1])
inputs, integers = make_inputs(case), case.integers
op, backward = torch.ops.dcn_ops.deform_conv2d, torch.ops.dcn_ops.deform_conv2d_backward
output = op(*inputs, **integers)


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


for call in (lambda: [op(*inputs, **integers)], lambda: backward(output, *inputs, **integers, needs=[True] * 5)):
    results = sum(t.numel() * t.element_size() for t in call())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    print(resident("VmHWM") - before - results)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of resident memory")
@pytest.mark.parametrize("name", LARGE)
def test_a_call_takes_half_of_the_workspace_limit_and_leaves_the_rest_to_holes(name: str) -> None:
    case = LARGE[name]
    command, environment = [sys.executable, "-c", MEASURE, repr(case)], os.environ | GIVES_BACK
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    forward, backward = map(int, printed)
    image = Padded.of(case.batch, case.size).rows * case.channels * 4
    assert forward <= image + dcn_ops.workspace_limit() // 2
    assert backward <= 2 * image + dcn_ops.workspace_limit() // 2
