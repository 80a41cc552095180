"""Peak memory of one provider on one case, in a separate process."""

import subprocess
import sys
from pathlib import Path

from .cases import SUITES
from .measure import steps_of

_STATUS = Path("/proc/self/status")


def peak_of(case: str, mode: str, provider: str, sigma: float = 1.0) -> int | None:
    """Return a second call's peak in bytes above the memory before it; None if the case is unsupported.

    Linux only: it reads the kernel's high-water mark of resident memory, reset after the first call.
    """
    command = [sys.executable, "-m", "zoo.scripts.benchmark.memory", case, mode, provider, str(sigma)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"measuring {provider} on {case} failed: {result.stderr[-2000:]}")
    return None if result.stdout.strip().endswith("None") else int(result.stdout.split()[-1])


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _main(name: str, mode: str, provider: str, sigma: str) -> None:
    case = next(c for cases in SUITES.values() for c in cases if c.name == name)
    steps, _ = steps_of(case, mode, [provider], float(sigma), "cpu")
    if provider not in steps:
        print(None)
        return
    step = steps[provider]
    step()
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step()
    print(_resident("VmHWM") - before)


def _return_freed_memory() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
