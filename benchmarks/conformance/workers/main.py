"""Answer the cases of one runtime: python main.py REQUEST.json.

A case's answer is a file: .npz with the outputs, or .txt with the error. A file .started says which case runs, so
that the parent knows what ended the process.
"""

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(request: dict[str, Any]) -> None:
    """Answer every case of a request."""
    answers = Path(request["answers"])
    versions = {package: importlib.metadata.version(package) for package in request["versions"]}
    (answers / "versions.json").write_text(json.dumps(versions))
    module, function = request["worker"].split(":")
    load = getattr(importlib.import_module(module), function)
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


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
