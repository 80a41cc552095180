"""Run the cases of a route in a process of its own, again and again until every case has an answer."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from .routes import Route

_ROOT = Path(__file__).parents[2]
_WORKER = Path(__file__).parent / "workers" / "main.py"


def slug(text: str) -> str:
    """Return a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def environment(route: Route, folder: Path) -> Path:
    """Return the interpreter of a runtime's own virtual environment; a missing one gets the newest packages.

    Raises:
        subprocess.CalledProcessError: If pip fails; no environment is left.
    """
    place = folder / slug(route.runtime)
    python = place / "bin" / "python"
    if not place.exists():
        print(f"{route.runtime}: making {place}", flush=True)
        venv.create(place, with_pip=True)
        packages = {*route.versions, *route.install, "numpy", *(("torch", "torchvision") if route.torch else ())}
        try:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *sorted(packages)], check=True)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    return python


def versions(route: Route, python: Path) -> dict[str, str] | None:
    """Return the versions that an interpreter would import, or None where one is missing."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *route.versions], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def answer(route: Route, cases: list[str], python: Path, files: Path, answers: Path, limit: float) -> None:
    """Write an answer for every case; what ended a process is the answer of the case that ran.

    Args:
        route: The runtime and the way into it.
        cases: Their names; those with an answer are skipped.
        python: The interpreter.
        files: The folder of the cases.
        answers: The folder that gets the answers; those of other versions are removed first.
        limit: Seconds that a case may take.
    """
    _forget_other_versions(versions(route, python), answers)
    while left := [case for case in cases if not _answered(answers / case)]:
        request = {"worker": route.worker, "form": route.form, "versions": route.versions, "cases": left}
        request |= {"files": str(files.resolve()), "answers": str(answers.resolve())}
        ended = _process(request, python, route.torch, limit, answers)
        if ended is None:
            continue
        started = [case for case in left if not _answered(answers / case) and _started(answers / case)]
        if not started:
            raise RuntimeError(f"{route.name}: the process {ended[1]} before its first case")
        (answers / started[-1]).with_suffix(f".{ended[0]}").write_text(ended[1])


def times(route: Route, python: Path, files: Path, seconds: float, limit: float) -> dict[str, float] | str:
    """Return the milliseconds of the blocks by kind, or what ended the process.

    Args:
        route: The runtime and the way into it.
        python: The interpreter.
        files: The folder of the blocks.
        seconds: How long to time.
        limit: Seconds that all may take.
    """
    with tempfile.TemporaryDirectory() as place:
        request = {"worker": route.worker, "form": route.form, "versions": route.versions, "seconds": seconds}
        request |= {"files": str(files.resolve()), "answers": place}
        ended = _process(request, python, route.torch, limit, Path(place))
        if ended is not None:
            return ended[1]
        found: dict[str, float] = json.loads((Path(place) / "times.json").read_text())
        return found


def _answered(answer: Path) -> bool:
    return any(answer.with_suffix(f".{kind}").exists() for kind in ("npz", "txt", "crashed", "hung"))


def _started(answer: Path) -> bool:
    return answer.with_suffix(".started").exists()


def _forget_other_versions(now: dict[str, str] | None, answers: Path) -> None:
    file = answers / "versions.json"
    if file.exists() and json.loads(file.read_text()) != now:
        shutil.rmtree(answers)
    answers.mkdir(parents=True, exist_ok=True)


def _process(
    request: dict[str, object], python: Path, torch: bool, limit: float, answers: Path
) -> tuple[str, str] | None:
    """Run a request, and return how the process ended, unless it ended well."""
    for left in answers.glob("*.started"):
        left.unlink()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "request.json"
        file.write_text(json.dumps(request))
        # A tool that calls pip, as mnnconvert does, must meet its own environment and no index.
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT) if torch else "", "PATH": path}
        settings |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_REQUIRE_VIRTUALENV": "1"}
        command = [python, "-W", "ignore", _WORKER, file]
        with (answers / "log.txt").open("w") as log:
            process = subprocess.Popen(command, cwd=place, env=os.environ | settings, stdout=log, stderr=log)
            if not _wait(process, answers, limit):
                process.kill()
                process.wait()
                return "hung", f"no answer within {limit:g} s"
    code = process.returncode
    if code == 0:
        return None
    said = (answers / "log.txt").read_text(errors="replace").strip().splitlines()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "crashed", f"ended by {how}" + (f": {said[-1][:200]}" if said else "")


def _wait(process: subprocess.Popen[bytes], answers: Path, limit: float) -> bool:
    """Wait for the end; False where no case was started or answered within the limit."""
    before = -1
    while True:
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            now = len(list(answers.iterdir()))
            if now == before:
                return False
            before = now
        else:
            return True


def interpreter(route: Route, given: dict[str, Path], environments: Path | None) -> Path:
    """Return the interpreter of a route: a given one, that of its environment, or this one."""
    if route.runtime in given:
        return given[route.runtime]
    return Path(sys.executable) if environments is None else environment(route, environments)
