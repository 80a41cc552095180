"""The results file, what changed in it, and the tables of docs/runtimes.md."""

from collections import Counter
from typing import Any

from .advice import ADVICE, ON_PAPER
from .cases import CASES
from .judge import ANSWERS
from .routes import ROUTES, Route

Results = dict[str, dict[str, Any]]  # by route: versions, cells by case, and how many cases ended the process
_TABLES = {
    "operators": lambda route: not (_portable(route)),
    "portable": lambda route: _portable(route),
}


def _portable(route: Route) -> bool:
    return route.form in ("grid_sample", "gather")


def changes(before: Results, now: Results, cases: list[str]) -> list[str]:
    """Return a line for each cell that differs from the one in the results before, among these cases.

    A cell differs if its answer does, or the amount of a wrong one. A case without a cell ended the process.
    """
    lines = []
    for name, route in now.items():
        old = before.get(name)
        if old is None:
            lines.append(f"{name}, {release(route)}: new")
            continue
        releases = f"{release(old)} → {release(route)}"
        for case in cases:
            if case not in old["cells"] and not _complete(old):
                continue  # it was not asked before
            former, cell = old["cells"].get(case), route["cells"].get(case)
            if _kind(former) != _kind(cell):
                lines.append(f"{name}, {releases}: {case}: {say(former)} → {say(cell)}")
    return lines


def _kind(cell: dict[str, Any] | None) -> tuple[str, ...]:
    if cell is None:
        return ("ended",)
    return (cell["answer"],) if "message" in cell or cell["answer"] == "right" else (cell["answer"], _amount(cell))


def _complete(result: dict[str, Any]) -> bool:
    return len(result["cells"]) + sum(result["ended"].values()) == len(CASES)


def release(route: dict[str, Any]) -> str:
    """Return the versions of a route."""
    return ", ".join(route["versions"].values())


def say(cell: dict[str, Any] | None) -> str:
    """Return the words for a cell."""
    if cell is None:
        return "no answer, the process ended"
    if cell["answer"] == "right":
        return "right"
    if "message" in cell:
        return f"{cell['answer']} ({cell['message'][:90]})"
    return f"{cell['answer']} ({_amount(cell)})"


def _amount(cell: dict[str, Any]) -> str:
    if cell.get("nonfinite"):
        return "NaN"
    return f"{cell['error']:.1g}"


def summary(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return the table of routes: how many cases have which answer, and the largest error of the right ones."""
    head = ["#", "runtime", "the layer in it", "version", "cases", *ANSWERS, "largest error of the right, float32"]
    rows = []
    for i, route in enumerate(ROUTES, 1):
        if route.name not in results:
            continue
        result = results[route.name]
        counts = Counter(cell["answer"] for cell in result["cells"].values()) | Counter(result["ended"])
        errors = [
            cell["error"]
            for case, cell in result["cells"].items()
            if cell["answer"] == "right" and CASES[case].dtype == "float32"
        ]
        version = ", ".join(result["versions"].values())
        number = [str(counts[answer] or "") for answer in ANSWERS]
        largest = f"{max(errors):.0e}" if errors else ""
        rows.append([str(i), route.runtime, route.way, version, str(counts.total()), *number, largest])
    return head, rows


_SIGNS = {"right": "", "refused": "–"}


def matrix(results: Results, name: str) -> tuple[list[str], list[list[str]]]:
    """Return one table of cells: a row for each case, a column for each route, numbered as in the summary."""
    columns = [(str(i), results[r.name]) for i, r in enumerate(ROUTES, 1) if r.name in results and _TABLES[name](r)]
    head = ["case", *(number for number, _ in columns)]
    return head, [[case, *(_sign(case, result) for _, result in columns)] for case in CASES]


def _sign(case: str, result: dict[str, Any]) -> str:
    cell = result["cells"].get(case)
    if cell is None:  # it ended the process, or it was not run
        return "–" if _complete(result) else "?"
    if cell["answer"] in _SIGNS:
        return _SIGNS[cell["answer"]]
    text = "shape" if "message" in cell else _amount(cell)
    return f"**{text}**" if cell["answer"] == "wrong" else text


def advice(results: Results, speed: Results) -> tuple[list[str], list[list[str]]]:
    """Return the table of what to take in each runtime, its speed beside the plain block, and what to avoid."""
    versions = {route.runtime: release(results[route.name]) for route in ROUTES if route.name in results}
    rows = []
    for entry in ADVICE:
        take = ": ".join(filter(None, (entry.way, entry.how))) or "none of the three forms"
        name = f"{entry.runtime} {versions.get(entry.runtime, '')}".strip()
        rows.append([name, take, _ratio(speed.get(f"{entry.runtime}: {entry.way}")), entry.avoid])
    return ["runtime", "take", "x plain", "avoid"], rows + ON_PAPER


def _ratio(times: dict[str, Any] | None) -> str:
    return "" if times is None else f"{times['deformable'] / times['plain']:.2f}"


def speeds(speed: Results) -> tuple[list[str], list[list[str]]]:
    """Return the table of all blocks that were timed."""
    timed = [(route, speed[route.name]) for route in ROUTES if route.name in speed]
    rows = [
        [
            route.runtime,
            route.way,
            release(times),
            *(f"{times[k]:.1f}" for k in ("deformable", "plain")),
            _ratio(times),
        ]
        for route, times in timed
    ]
    return ["runtime", "the layer in it", "version", "ms", "plain ms", "x plain"], rows
