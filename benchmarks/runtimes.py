"""What every runtime makes of a deformable convolution: python benchmarks/runtimes.py.

Every runtime that this environment has answers every case, in a process of its own, and is compared with the
float64 reference. Answers are kept in runs/runtimes: an interrupted run goes on, and another version of a runtime
is asked anew. The command prints what changed since benchmarks/results/runtimes.json, and writes that file and the
tables of docs/runtimes.md. A new release is checked with

    python benchmarks/runtimes.py --environments /tmp/runtimes --runtime ncnn

which installs the newest ncnn into an environment of its own (delete the folder for the next release).
"""

import argparse
import fnmatch
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from conformance import files, judge, processes, table
from conformance.cases import CASES
from conformance.routes import ROUTES, Route

_ROOT = Path(__file__).parents[1]
_JSON, _PAGE = _ROOT / "benchmarks/results/runtimes.json", _ROOT / "docs/runtimes.md"


def main() -> None:
    """Run what is installed, print the changes, and write the results and the page."""
    arguments = _parser().parse_args()
    now: dict[str, Any] = {}
    if not arguments.tables:
        cases = [case for case in CASES if fnmatch.fnmatch(case, arguments.case)]
        _write_files(cases, arguments.folder / "files")
        for route in [route for route in ROUTES if fnmatch.fnmatch(route.runtime, arguments.runtime)]:
            result = _run(route, cases, arguments)
            if result is not None:
                now[route.name] = result
    before = json.loads(_JSON.read_text()) if _JSON.exists() else {}
    for line in (found := table.changes(before, now)) or ["nothing changed"]:
        print(line)
    merged = _merged(before, now)
    _JSON.write_text(json.dumps(merged, indent=1) + "\n")
    _write_page(merged)
    print(f"{len(found)} changes; written: {_JSON} and {_PAGE}")


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


def _run(route: Route, cases: list[str], arguments: argparse.Namespace) -> dict[str, Any] | None:
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


def _merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return all results in the order of the routes; cases that did not run keep their cells."""
    merged = {}
    for route in ROUTES:
        old, new = before.get(route.name), now.get(route.name)
        if old and new and old["versions"] == new["versions"]:
            merged[route.name] = {**new, "cells": old["cells"] | new["cells"]}
        elif old or new:
            merged[route.name] = new or old
    return merged


def _write_page(results: dict[str, Any]) -> None:
    from zoo.scripts.storage import markdown

    head, rows = table.summary(results)
    markdown.replace_block(_PAGE, "routes", markdown.table(head, rows))
    for name in ("operators", "portable"):
        head, rows = table.matrix(results, name)
        markdown.replace_block(_PAGE, f"cells-{name}", markdown.table(head, rows))


if __name__ == "__main__":
    main()
