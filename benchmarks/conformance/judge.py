"""Compare the answers of a process with the reference."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from .cases import BUDGET, CASES, Question

# What a cell of the table says. "other": the definition is silent, and the answer is not this library's.
ANSWERS = ("right", "wrong", "other", "refused", "crashed", "hung")


def judge(case: str, answers: Path, files: Path, budget: float = 0.0) -> dict[str, Any] | None:
    """Return the cell of a case: its answer, the error relative to the largest output, and what there is to say.

    Args:
        case: Its name.
        answers: The folder with the answers of one route.
        files: The folder with the reference's outputs.
        budget: Largest error that is right, where it is more than the dtype's.

    Returns:
        None where the case has not run.
    """
    answer = answers / case
    for kind in ("crashed", "hung"):
        if answer.with_suffix(f".{kind}").exists():
            return {"answer": kind, "message": answer.with_suffix(f".{kind}").read_text()}
    if answer.with_suffix(".txt").exists():
        return {"answer": "refused", "message": _message(answer.with_suffix(".txt").read_text(), case)}
    if not answer.with_suffix(".npz").exists():
        return None
    with np.load(answer.with_suffix(".npz")) as outputs:
        given = [outputs[name] for name in outputs]
    return compare(
        CASES[case], given, [np.load(files / case / f"expected{i}.npy") for i in range(len(given))], budget
    )


def _message(text: str, case: str) -> str:
    """Return a message in one line, without the folders of the machine that it comes from."""
    return re.sub(rf"\S*/({re.escape(case)}|ort\.quant\.\w+)/", "", " ".join(text.split()))[:300]


def compare(
    question: Question, outputs: list[np.ndarray], expected: list[np.ndarray], budget: float
) -> dict[str, Any]:
    """Return the cell of these outputs."""
    differs = "wrong" if question.specified else "other"
    for output, target in zip(outputs, expected, strict=True):
        if output.shape != target.shape:
            return {"answer": differs, "message": f"shape {output.shape} instead of {target.shape}"}
    if not sum(target.size for target in expected):
        return {"answer": "right", "error": 0.0}
    largest = max(float(np.abs(target).max()) for target in expected)
    with np.errstate(all="ignore"):
        errors = np.concatenate(
            [np.abs(o - t).ravel() for o, t in zip(outputs, expected, strict=True)], dtype=np.float64
        )
    errors /= largest
    budget = max(budget, BUDGET[question.dtype])
    if np.all(errors <= budget):  # NaN is not
        return {"answer": "right", "error": float(errors.max())}
    share = float(np.mean(~(errors <= budget)))
    cell = {"answer": differs, "share": share}
    if not np.isfinite(errors).all():
        cell["nonfinite"] = float(np.mean(~np.isfinite(errors)))
    finite = errors[np.isfinite(errors)]
    return {**cell, "error": float(finite.max()) if finite.size else None}
