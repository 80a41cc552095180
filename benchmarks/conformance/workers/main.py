"""Answer the cases of one runtime, or time its blocks: python main.py REQUEST.json.

A case's answer is a file: .npz with the outputs, or .txt with the error. A file .started says which case runs, so
that the parent knows what ended the process.
"""

import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(request: dict[str, Any]) -> None:
    """Answer every case of a request; one with "seconds" is for the speed."""
    answers = Path(request["answers"])
    versions = {package: importlib.metadata.version(package) for package in request["versions"]}
    (answers / "versions.json").write_text(json.dumps(versions))
    module, function = request["worker"].split(":")
    load = getattr(importlib.import_module(module), function)
    if "seconds" in request:
        times = _times(load, Path(request["files"]), request["form"], request["seconds"])
        (answers / "times.json").write_text(json.dumps(times))
        return
    for case in request["cases"]:
        answer = answers / case
        answer.with_suffix(".started").touch()
        try:
            outputs = _answer(load, Path(request["files"]) / case, request["form"])
        except (Exception, SystemExit) as error:  # a runtime may raise anything, and that is an answer
            answer.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            answer.with_suffix(".txt").write_text(f"{type(error).__name__}: {error}")  # Rust panics
        else:
            np.savez(answer.with_suffix(".npz"), *outputs)


def _answer(load: Callable[..., Any], folder: Path, form: str) -> list[np.ndarray]:
    about = json.loads((folder / "about.json").read_text())
    refused = folder / f"{form}.txt"
    if refused.exists():
        raise ValueError(f"the exporter wrote no file: {refused.read_text()}")
    run = load(folder, form, about)
    outputs = []
    for i in range(about["calls"]):
        with np.load(folder / f"inputs{i}.npz") as tensors:
            named = {"input": "x", "offset": "offset", "mask": "mask"}  # in the order of a file's inputs
            given = {named[name]: tensors[name] for name in named if name in tensors}
        outputs.append(np.array(run(given), copy=True))
    return outputs


def _times(load: Callable[..., Any], folder: Path, form: str, seconds: float) -> dict[str, float]:
    """Return the median milliseconds of each block; calls alternate for some seconds, at least five of each."""
    runs, times = {}, {}
    for kind in ("deformable", "plain"):
        run, given, target = _block(load, folder / kind, form)
        error = np.abs(np.asarray(run(given)) - target).max() / np.abs(target).max()
        if not error < 1e-3:
            raise ValueError(f"the {kind} block is wrong by {error:.1g}")
        runs[kind], times[kind] = (run, given), list[float]()
    start = time.perf_counter()
    while len(times["plain"]) < 5 or time.perf_counter() - start < seconds:
        for kind, (run, given) in runs.items():
            before = time.perf_counter()
            run(given)
            times[kind].append(1000 * (time.perf_counter() - before))
    return {kind: statistics.median(values) for kind, values in times.items()}


def _block(load: Callable[..., Any], folder: Path, form: str) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    about = json.loads((folder / "about.json").read_text())
    with np.load(folder / "example.npz") as tensors:
        return load(folder, form, about), {"x": tensors["input"]}, np.load(folder / "expected.npy")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
