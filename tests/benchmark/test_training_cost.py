"""benchmarks/training.py: steps of dcn-train beside those of a bare loop, and the memory of both."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training.py"
TINY = ["experiment=detect_digits", "data.images=32", "data.img_size=64", "data.batch_size=2", "data.workers=0"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process its peak since a moment")
def test_time_and_memory_of_both_loops_are_added_to_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = runpy.run_path(str(SCRIPT))
    results = tmp_path / "training.json"
    results.write_text('{"unet": 1}')
    monkeypatch.setitem(namespace["main"].__globals__, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "fcos", *TINY, "--steps", "8"])
    namespace["main"]()
    found = json.loads(results.read_text())
    assert found["unet"] == 1
    seconds, memory = found["fcos"]["cpu_seconds_of_a_step"], found["fcos"]["peak_mib"]
    assert found["fcos"]["ratio"] == pytest.approx(seconds["engine"] / seconds["bare"], rel=0.01)
    assert min(seconds.values()) > 0
    assert found["fcos"]["ratio_of_memory"] == pytest.approx(memory["engine"] / memory["bare"], rel=0.01)
    assert min(memory.values()) > 10, "MiB: a loop that trains nothing takes none"


def test_steps_that_only_warm_up_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "fcos", "--steps", "5"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "expected --steps above 6, since 5 warm up, got 5" in capsys.readouterr().err
