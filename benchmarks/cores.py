"""How far apart two cores are: ``python benchmarks/cores.py`` prints nanoseconds, on Linux.

Virtual cores of a rented machine may move between chiplets from one minute to the next. Then what two threads hand
to each other takes six times as long, and many small parallel loops gain nothing from a second thread.
"""

import subprocess
import tempfile
from pathlib import Path

from dcn_ops.native.build import find_compiler

NEAR = 80  # nanoseconds from core to core up to which they share a cache


def nanoseconds() -> int:
    """Return how long a cache line takes from the first core to the second."""
    source = str(Path(__file__).with_suffix(".cpp"))
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cores")
        subprocess.run([find_compiler(), "-O2", "-std=c++17", "-pthread", source, "-o", program], check=True)
        return int(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(nanoseconds())
