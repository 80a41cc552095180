"""The failures that dcn-export reads: what fails in the forms that it writes."""

import math
from typing import Any

from zoo.scripts.deploy import guard

from .cases import CASES, Question
from .table import Results, release

# Answers to what no export asks: another precision of the whole program, or no image at all.
_NOT_ASKED = {"float64", "batch 0"}


def failures(results: Results) -> dict[str, Any]:
    """Return by route the version, and for each set of features that fails the case and what is seen.

    A failure whose features include those of another one is left out.
    """
    routes = {route for forms in guard.ROUTES.values() for route in forms.values()}
    return {
        name: {"version": release(result), "failures": _smallest(result)}
        for name, result in results.items()
        if name in routes
    }


def _smallest(result: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cases = [case for case in CASES if case not in _NOT_ASKED]
    for case in sorted(cases, key=lambda case: len(features(CASES[case]))):
        seen, asked = _seen(result["cells"].get(case), case), features(CASES[case])
        if seen and not any(asked >= set(failure["features"]) for failure in found):
            found.append({"case": case, "features": sorted(asked), "seen": seen})
    return found


def features(question: Question) -> set[str]:
    """Return what a case has beside the usual, in the words of the guard."""
    shape = question.shape
    layer = guard.Layer(
        channels=shape.channels, groups=shape.groups, offset_groups=shape.offset_groups, mask=shape.mask
    )
    others = {
        question.dtype: question.dtype != "float32",
        "dynamic batch": bool(question.axes),
        "dynamic size": len(question.axes) > 1,
        "several images": shape.batch > 1 and not question.axes,
        "a map of one row": math.prod(shape.size) == max(shape.size),
    }
    return layer.features() | {name for name, has in others.items() if has}


def _seen(cell: dict[str, Any] | None, case: str) -> str | None:
    if cell is None:
        return f"has no answer in the case {case!r}"
    if cell["answer"] == "wrong":
        error = "NaN" if cell.get("error") is None else f"{cell['error']:.1g} of the largest output"
        return f"is wrong by {error} in the case {case!r}"
    return f"refuses the case {case!r}" if cell["answer"] == "refused" else None
