"""benchmarks/runtimes.py: the re-check of a release, and what is written."""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
RESULTS = json.loads((REPOSITORY / "benchmarks/results/runtimes.json").read_text())
ROUTE = "onnx.reference: gathers"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The command, which writes into a folder of its own."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    module = importlib.import_module("runtimes")
    for name, file in {"_JSON": "results.json", "_KNOWN": "known.json", "_SPEED": "speed.json"}.items():
        monkeypatch.setattr(module, name, tmp_path / file)
    monkeypatch.setattr(module, "_PAGE", Path(shutil.copy(REPOSITORY / "docs/runtimes.md", tmp_path)))
    shutil.copy(REPOSITORY / "benchmarks/results/runtimes-speed.json", tmp_path / "speed.json")
    return module


def run(command: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["runtimes.py", *arguments])
    command.main()


def edited(change: dict[str, Any] | None, case: str = "kernel 1x1") -> dict[str, Any]:
    """Return the results with another cell, or without it."""
    results = json.loads(json.dumps(RESULTS))
    if change is None:
        del results[ROUTE]["cells"][case]
        results[ROUTE]["ended"] = {"crashed": 1}
    else:
        results[ROUTE]["cells"][case] = change
    return results


def test_a_release_is_asked_anew_and_what_changed_is_printed(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = json.dumps(edited({"answer": "wrong", "error": 0.7, "share": 1.0}))
    command._JSON.write_text(text)
    asked = ("--runtime", "onnx.reference", "--case", "kernel 1x1")
    run(command, monkeypatch, *asked, "--folder", str(tmp_path / "runs"))
    (changed,) = [line for line in capsys.readouterr().out.splitlines() if "→ right" in line]
    assert changed.startswith(f"{ROUTE}, ")
    assert changed.endswith("kernel 1x1: wrong (0.7) → right")
    assert command._JSON.read_text() == text, "with --case nothing is written"


def test_every_kind_of_change_is_a_line(command: ModuleType) -> None:
    from conformance.cases import CASES
    from conformance.table import changes

    cases = list(CASES)
    assert changes(RESULTS, RESULTS, cases) == []
    now = {ROUTE: edited({"answer": "wrong", "error": 0.7, "share": 1.0})[ROUTE]}
    assert changes(RESULTS, now, cases)[0].endswith("kernel 1x1: right → wrong (0.7)")
    worse = {ROUTE: edited({"answer": "wrong", "error": 2.0, "share": 1.0})[ROUTE]}
    assert changes(now, worse, cases)[0].endswith("kernel 1x1: wrong (0.7) → wrong (2)")
    ended = {ROUTE: edited(None)[ROUTE]}
    assert changes(RESULTS, ended, cases)[0].endswith("kernel 1x1: right → no answer, the process ended")
    assert changes({}, now, cases) == [f"{ROUTE}, {RESULTS[ROUTE]['versions']['onnx']}: new"]


def test_a_cell_that_changed_reaches_the_page_and_the_guard(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    route, cell = "ONNX Runtime: GridSample", {"answer": "wrong", "error": 0.7, "share": 1.0}
    results = json.loads(json.dumps(RESULTS))
    results[route]["cells"]["groups 2"] = cell
    command._JSON.write_text(json.dumps(results))
    run(command, monkeypatch, "--tables")
    failures = json.loads(command._KNOWN.read_text())[route]["failures"]
    assert {
        "case": "groups 2",
        "features": ["groups"],
        "seen": "is wrong by 0.7 of the largest output in the case 'groups 2'",
    } in failures
    lines = command._PAGE.read_text().splitlines()
    assert any(line.startswith("| groups 2 |") and "**0.7**" in line for line in lines)


def test_the_page_is_that_of_the_results(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    command._JSON.write_text(json.dumps(RESULTS))
    run(command, monkeypatch, "--tables")
    assert command._PAGE.read_text() == (REPOSITORY / "docs/runtimes.md").read_text()


def test_no_message_has_a_folder_of_a_machine() -> None:
    messages = [cell.get("message", "") for result in RESULTS.values() for cell in result["cells"].values()]
    assert not [message for message in messages if "/tmp/" in message or "/home/" in message]


@pytest.mark.slow
def test_the_blocks_are_right_and_timed(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command._JSON.write_text(json.dumps(RESULTS))
    command._SPEED.unlink()
    folder = str(tmp_path / "runs")
    run(command, monkeypatch, "--speed", "--runtime", "torchvision", "--seconds", "0.1", "--folder", folder)
    times = json.loads(command._SPEED.read_text())["torchvision: its operator"]
    assert times["deformable"] > 0
    assert times["plain"] > 0
    assert command._PAGE.read_text().count(f"{times['deformable']:.1f} | {times['plain']:.1f}") == 1
