"""How far apart two cores are: ``python benchmarks/cores.py`` prints nanoseconds, on Linux.

Virtual cores of a rented machine may move between chiplets from one minute to the next. Then what two threads hand
to each other takes six times as long, and many small parallel loops gain nothing from a second thread.
"""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from dcn_ops.native.build import find_compiler

NEAR = 80  # nanoseconds from core to core up to which they share a cache


@cache
def _program() -> Path:
    target = Path(tempfile.mkdtemp()) / "cores"
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run([find_compiler(), "-O2", "-std=c++17", "-pthread", str(source), "-o", str(target)], check=True)
    return target


def nanoseconds() -> int:
    """Return how long a cache line takes from the first core to the second."""
    return int(subprocess.run([str(_program())], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(nanoseconds())
