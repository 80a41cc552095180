"""The memory that a call takes at its peak, measured in a process of its own, whose memory nobody used before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_resident_memory = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of resident memory"
)
# glibc gives back what is freed: the holes that it keeps otherwise differ by 20 MiB from process to process.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
# Resident memory counts what libraries allocate too.
_MEASURE = """
import ctypes, sys
from pathlib import Path
import torch

sys.path.append({tests!r})
torch.set_num_threads(1)
{prepare}


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


output = op(*inputs, **numbers)
needs = [True] * len(inputs)
for call in (lambda: [op(*inputs, **numbers)], lambda: backward(output, *inputs, **numbers, needs=needs)):
    results = sum(t.numel() * t.element_size() for t in call())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    print(resident("VmHWM") - before - results)
"""


def measure_peaks(prepare: str) -> tuple[int, int]:
    """Return the bytes that a forward and a backward take beside their results.

    Args:
        prepare: Code that defines ``op`` and ``backward``, two operators, and their ``inputs`` and ``numbers``.
    """
    program = _MEASURE.format(tests=str(Path(__file__).parent), prepare=prepare)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | _GIVES_BACK)
    forward, backward = map(int, done.stdout.split())
    return forward, backward
