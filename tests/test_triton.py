"""The Triton kernels without a GPU: interpreted, compiled for the architectures that they are for, and traced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no package for this platform")


@pytest.mark.slow
def test_interpreted_kernels_are_the_reference() -> None:
    # The interpreter is chosen when triton is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "interpreted_kernels.py"]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
