"""The tables of dcn-bench in a Markdown file: ratios to the floor, and the missed bounds."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..storage import markdown
from .cases import SUITES
from .measure import Row

_SAMPLING = "8x96x56x56-dw"  # its samples' price is taken for the floor of other cases
_TITLES = {"conv2d": "`conv2d`", "eager": "ours", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def write(source: Path, target: Path) -> None:
    """Write a JSON file NAME of dcn-bench between the marks ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    Raises:
        ValueError: If the target doesn't have these marks.
    """
    report = json.loads(source.read_text())
    about = f"`{report['command']}`, commit {report['commit']}"
    parts = [grid(report["rows"]), f"({about}.) {missed(report['bounds'], floors(report['rows']))}".strip()]
    markdown.replace_block(target, source.stem, "\n\n".join(parts))


def grid(rows: list[Row]) -> str:
    """Return a line for each case and number of threads: the floor in milliseconds, the others as ratios."""
    measured = [row for row in rows if "ms" in row]
    providers: dict[str, list[str]] = defaultdict(list)  # of each mode, in their order
    cells: dict[tuple[str, int], dict[tuple[str, str], str]] = defaultdict(dict)
    for row in measured:
        if row["provider"] not in providers[row["mode"]]:
            providers[row["mode"]].append(row["provider"])
        cells[row["case"], row["threads"]][row["mode"], row["provider"]] = _cell(row)
    columns = [(mode, provider) for mode, of_mode in providers.items() for provider in of_mode]
    firsts = {(mode, of_mode[0]) for mode, of_mode in providers.items()}
    titles = [f"{mode}: {_title(name)}" if (mode, name) in firsts else _title(name) for mode, name in columns]
    several = len({threads for _, threads in cells}) > 1
    lines = [
        [case, *([str(threads)] if several else []), *(line.get(column, "") for column in columns)]
        for (case, threads), line in cells.items()
    ]
    return markdown.table(["case", *(["threads"] if several else []), *titles], lines)


def floors(rows: list[Row]) -> dict[tuple[str, str], float]:
    """Return by case and mode what a float32 convolution with filters can reach beside ``conv2d``.

    That is ``conv2d`` itself, and the time of the depthwise operator for as many samples, because that one does
    hardly more than to sample. Of files with that depthwise case and one number of threads.
    """
    known = {case.name: case for case in SUITES["op"]}
    times = {(row["case"], row["mode"], row["provider"]): row["ms"] for row in rows if "ms" in row}
    if len({row["threads"] for row in rows}) > 1:
        return {}
    found = {}
    for (name, mode, provider), time in times.items():
        sampling, case = times.get((_SAMPLING, mode, "eager")), known.get(name)
        if sampling and case and provider == "conv2d" and case.dtype == "float32" and case.groups < case.channels:
            found[name, mode] = 1 + sampling * case.samples / known[_SAMPLING].samples / time
    return found


def missed(bounds: list[dict[str, Any]], floors: dict[tuple[str, str], float]) -> str:
    """Return how many bounds are met, and a line with the cases for each kind of missed bound.

    Behind a ratio to ``conv2d`` stands its floor, if it has one.
    """
    if not bounds:
        return ""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for bound in bounds:
        if not bound["met"]:
            key = bound["peer"], bound["mode"], bound["provider"], f"{bound['limit']:.2f}"
            floor = floors.get((bound["case"], bound["mode"])) if bound["peer"] == "conv2d" else None
            note = f" (floor {floor:.2f})" if floor else ""
            found[key].append(f"{bound['case']} {bound['ratio']:.2f}{note}")
    lines = [
        f"- {mode}, {provider}, against {peer} (bound {limit}): {', '.join(cases)}"
        for (peer, mode, provider, limit), cases in sorted(found.items())
    ]
    count = f"{sum(bound['met'] for bound in bounds)} of {len(bounds)} bounds met"
    return f"{count}; missed:\n\n" + "\n".join(lines) if lines else f"{count}."


def _is_floor(provider: str) -> bool:
    return provider.split()[0] in ("conv2d", "plain")


def _title(provider: str) -> str:
    return _TITLES.get(provider, provider) + (" ms" if _is_floor(provider) else "")


def _cell(row: Row) -> str:
    if _is_floor(row["provider"]):
        return f"{row['ms']:.3f}" if row["ms"] < 1 else f"{row['ms']:.1f}"
    return f"{row['ratio']:.2f}" if row["ratio"] < 10 else f"{row['ratio']:.0f}"
