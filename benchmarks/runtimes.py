"""What every runtime makes of a deformable convolution: python benchmarks/runtimes.py.

Every runtime that this environment has answers every case, in a process of its own, and is compared with the
float64 reference. Answers are kept in runs/runtimes: an interrupted run goes on, and another version of a runtime
is asked anew. The command prints what changed since benchmarks/results/runtimes.json, and writes that file, the
tables of docs/runtimes.md and the table that dcn-export reads; with --case it only prints. A new release is checked
with

    python benchmarks/runtimes.py --environments /tmp/runtimes --runtime ncnn

which installs the newest ncnn into an environment of its own (delete the folder for the next release). The option
--speed times a deformable block of ResNet-50 beside the plain one instead, in every runtime that is at hand.
"""

import argparse
import fnmatch
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from conformance import files, judge, known, processes, speed, table
from conformance.cases import CASES
from conformance.routes import ROUTES, Route

_ROOT = Path(__file__).parents[1]
_JSON, _PAGE = _ROOT / "benchmarks/results/runtimes.json", _ROOT / "docs/runtimes.md"
_SPEED = _ROOT / "benchmarks/results/runtimes-speed.json"
_KNOWN = _ROOT / "scripts/deploy/known.json"


def main() -> None:
    """Run what is installed, print the changes, and write the results and the page."""
    arguments = _parser().parse_args()
    if arguments.speed:
        _time(arguments)
        return
    cases = [case for case in CASES if fnmatch.fnmatch(case, arguments.case)]
    now: dict[str, Any] = {}
    if not arguments.tables:
        _write_files(cases, arguments.folder / "files")
        for route in _chosen(arguments):
            result = _run(route, cases, arguments)
            if result is not None:
                now[route.name] = result
    before = json.loads(_JSON.read_text()) if _JSON.exists() else {}
    for line in (found := table.changes(before, now, cases)) or ["nothing changed"]:
        print(line)
    if len(cases) < len(CASES):
        return
    merged = {route.name: result for route in ROUTES if (result := (before | now).get(route.name))}
    _JSON.write_text(json.dumps(merged, indent=1) + "\n")
    _KNOWN.write_text(json.dumps(known.failures(merged), indent=1) + "\n")
    _write_page(merged)
    print(f"{len(found)} changes; written: {_JSON}, {_KNOWN} and {_PAGE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runtime", default="*", help="a shell pattern of runtimes, such as 'ONNX*'")
    parser.add_argument("--case", default="*", help="a shell pattern of cases")
    parser.add_argument("--folder", type=Path, default=Path("runs/runtimes"), help="files and answers")
    parser.add_argument("--environments", type=Path, help="a folder with an environment for each runtime")
    parser.add_argument("--python", nargs="*", default=[], help="RUNTIME=INTERPRETER")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds that a case may take")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long --speed times each runtime")
    parser.add_argument("--speed", action="store_true", help="time a block of a network, and answer no case")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    return parser


def _write_files(cases: list[str], folder: Path) -> None:
    for case in cases:
        if not (folder / case).exists():
            print(f"writing the files of: {case}", flush=True)
            unfinished = folder / f"{case}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            files.write(CASES[case], unfinished)
            unfinished.rename(folder / case)


def _time(arguments: argparse.Namespace) -> None:
    """Time the routes that can be timed, and write the results and the page."""
    from zoo.scripts.storage.provenance import provenance

    results = json.loads(_SPEED.read_text()) if _SPEED.exists() else {}
    sources = arguments.folder / "blocks"
    speed.write(sources)
    for route in filter(speed.timed, _chosen(arguments)):
        found = _interpreter(route, arguments)
        if found is not None:
            times = processes.times(route, found[0], sources, arguments.seconds, arguments.limit)
            if isinstance(times, str):
                print(f"{route.name}: {times}", flush=True)
                results.pop(route.name, None)
                continue
            print(f"{route.name}: {times['deformable'] / times['plain']:.2f} times the plain block", flush=True)
            results[route.name] = {"versions": found[1], **times}
            about = provenance("runtimes.py") | {"command": "python benchmarks/runtimes.py --speed"}
            results = {route.name: results[route.name] for route in ROUTES if route.name in results}
            _SPEED.write_text(json.dumps({**results, "about": about}, indent=1) + "\n")
    _write_page(json.loads(_JSON.read_text()))


def _chosen(arguments: argparse.Namespace) -> list[Route]:
    return [route for route in ROUTES if fnmatch.fnmatch(route.runtime, arguments.runtime)]


def _interpreter(route: Route, arguments: argparse.Namespace) -> tuple[Path, dict[str, str]] | None:
    """Return the interpreter of a route and the versions in it, or None and say why."""
    given = {runtime: Path(python) for runtime, _, python in (text.partition("=") for text in arguments.python)}
    try:
        python = processes.interpreter(route, given, arguments.environments)
    except subprocess.CalledProcessError as error:
        print(f"{route.name}: not installed: {error}")
        return None
    versions = processes.versions(route, python)
    if versions is None:
        print(f"{route.name}: skipped, it needs {', '.join(route.versions)} (--environments FOLDER installs them)")
        return None
    return python, versions


def _run(route: Route, cases: list[str], arguments: argparse.Namespace) -> dict[str, Any] | None:
    found = _interpreter(route, arguments)
    if found is None:
        return None
    python, versions = found
    place = arguments.folder / processes.slug(route.name)
    sources = arguments.folder / "files"
    processes.answer(route, cases, python, sources, place, arguments.limit)
    cells = {case: cell for case in cases if (cell := judge.judge(case, place, sources, route.budget)) is not None}
    right = sum(cell["answer"] == "right" for cell in cells.values())
    print(f"{route.name} ({', '.join(versions.values())}): {right} of {len(cells)} right", flush=True)
    return _kept(versions, cells)


def _kept(versions: dict[str, str], cells: dict[str, Any]) -> dict[str, Any]:
    """Return what the results file keeps. Of cases that crash or hang a runtime only the number is published."""
    ended = Counter(cell["answer"] for cell in cells.values() if cell["answer"] in ("crashed", "hung"))
    kept = {case: cell for case, cell in cells.items() if cell["answer"] not in ended}
    return {"versions": versions, "cells": kept, "ended": dict(ended)}


def _write_page(results: dict[str, Any]) -> None:
    from zoo.scripts.storage import markdown

    times = json.loads(_SPEED.read_text()) if _SPEED.exists() else {}
    blocks = {
        "advice": table.advice(results, times),
        "speed": table.speeds(times),
        "routes": table.summary(results),
        "cells-operators": table.matrix(results, "operators"),
        "cells-portable": table.matrix(results, "portable"),
    }
    for block, (head, rows) in blocks.items():
        markdown.replace_block(_PAGE, block, markdown.table(head, rows))


if __name__ == "__main__":
    main()
