"""The results of ``zoo.coverage`` as a table."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Result = dict[str, Any]  # of one architecture


def read(file: Path) -> list[Result]:
    """Return the last result of each architecture, in order."""
    results: dict[str, Result] = {}
    for line in file.read_text().splitlines():
        result = json.loads(line)
        results[result["name"]] = result
    return [results[name] for name in sorted(results)]


def table(results: list[Result]) -> str:
    """Return Markdown: the totals, a row for each family, and each exception with its reason."""
    families = defaultdict(list)
    for result in results:
        families[result["family"]].append(result)
    rows = [_row("**all**", results), *(_row(name, of) for name, of in sorted(families.items()))]
    head = (
        "family",
        "architectures",
        "with a candidate",
        "converted",
        "run",
        "identical",
        "compile",
        "script",
        "train",
    )
    lines = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *map(_line, rows)]
    exceptions = [
        f"- {r['name']}: {_reason(r)}"
        for r in results
        if (r.get("candidates", 1) and not r.get("converted")) or r.get("identical") is False or _failed(r)
    ]
    return "\n".join([*lines, "", "Exceptions:", "", *(exceptions or ["- none"])])


def _row(name: str, results: list[Result]) -> list[str]:
    def count(key: str) -> str:
        return str(sum(bool(result.get(key)) for result in results))

    def share(key: str) -> str:  # of the architectures that were tried
        asked = sum(key in result for result in results)
        return f"{count(key)} of {asked}" if asked else "–"

    keys = ("candidates", "converted", "input")
    return [
        name,
        str(len(results)),
        *map(count, keys),
        count("identical"),
        share("compiles"),
        share("scripts"),
        share("trains"),
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _failed(result: Result) -> bool:
    broke = "error" in result and result.get("converted") != 0
    return broke or False in (result.get("compiles"), result.get("scripts"), result.get("trains"))


def _reason(result: Result) -> str:
    if "error" in result:
        return _short(result["error"])
    if result.get("identical") is False:
        return f"differs by {result['difference']:.1e}, with a budget of {result['budget']:.1e}"
    failed = [key for key in ("compiles", "scripts", "trains") if result.get(key) is False]
    likewise = "" if result.get("plain trains", True) else " (and so does the plain network)"
    return "; ".join(f"no longer {key}: {_short(result[f'why not {key}'])}" for key in failed) + likewise


def _short(message: str) -> str:
    return " ".join(message.split())[:200]
