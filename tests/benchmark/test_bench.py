"""dcn-bench: what it reports can be trusted."""

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from zoo.scripts import timing
from zoo.scripts.benchmark import bounds, cases, document, measure, memory, picture, providers
from zoo.scripts.benchmark.run import draw, run
from zoo.scripts.config.schema import Bench

import dcn_ops.sampling.pieces

TINY = cases.Case(batch=2, channels=4, filters=4, height=6, width=5)
TORCH = ["conv2d", "eager", "torchvision"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SUITES, "tiny", [TINY])


@pytest.mark.parametrize("mode", measure.MODES)
def test_a_wrong_provider_is_reported_and_not_timed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nearly(case: cases.Case, tensors: providers.Tensors) -> Callable[[], Tensor]:
        right = providers.eager(case, tensors)
        return lambda: 1.001 * right()

    monkeypatch.setitem(providers.PROVIDERS, "nearly", nearly)
    rows = {row["provider"]: row for row in measure.rows_of(TINY, mode, ["eager", "nearly"], 1.0, "cpu", rounds=2)}
    assert "differs by 1" in rows["nearly"]["wrong"]
    assert "ms" not in rows["nearly"]
    assert rows["eager"]["ms"] > 0


def test_a_wrong_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(case: cases.Case, tensors: providers.Tensors) -> Callable[[], Tensor]:
        offset = tensors["offset"]
        return lambda: providers.eager(case, {**tensors, "offset": offset / 2 + offset.detach() / 2})()

    monkeypatch.setitem(providers.PROVIDERS, "halved", halved)
    steps, refused = measure.steps_of(TINY, "training", ["eager", "halved"], 1.0, "cpu")
    assert list(steps) == ["eager"]
    assert "offset differs" in refused[0]["wrong"]


@pytest.mark.parametrize("provider", ["compiled", "onnxruntime", "openvino", "torchvision"])
@pytest.mark.parametrize(
    "case", [TINY, cases.Case(batch=1, channels=8, filters=8, height=5, width=7, groups=8, kernel=5)]
)
def test_every_peer_computes_the_same(provider: str, case: cases.Case) -> None:
    steps, refused = measure.steps_of(case, "forward", [provider], 2.0, "cpu")
    assert not refused
    assert list(steps) == [provider]


def test_what_a_provider_cannot_do_is_said() -> None:
    rows = measure.rows_of(TINY, "training", ["onnxruntime"], 1.0, "cpu", rounds=2)
    assert rows[0]["refused"] == "ONNX Runtime has no backward"


def test_times_and_ratios_are_those_of_the_steps() -> None:
    results = measure.timed({"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.02)}, 3, "cpu")
    assert 2 <= results["short"]["ms"] < 10
    assert 20 <= results["long"]["ms"] < 40


def row(provider: str, ms: float, case: str = "4x256x28x28", **other: object) -> measure.Row:
    return {"case": case, "mode": "forward", "provider": provider, "threads": 2, "ms": ms, **other}


@pytest.mark.parametrize(("ms", "met"), [(11.0, True), (11.1, False)])
def test_bounds_are_met_or_missed(ms: float, met: bool) -> None:
    verdict, *others = bounds.verdicts([row("conv2d", 10.0), row("eager", ms)])
    assert not others
    assert (verdict["limit"], verdict["peer"], verdict["met"]) == (1.1, "conv2d", met)


def test_bounds_take_the_cases_that_they_name() -> None:
    def limits(case: str, peer: str) -> list[float]:
        return [v["limit"] for v in bounds.verdicts([row(peer, 10.0, case), row("eager", 1.0, case)])]

    assert limits("8x64x56x56", "conv2d") == [1.3]
    assert limits("8x96x56x56-dw", "conv2d") == [2.2]
    assert limits("8x240x28x28-k5-dw", "conv2d") == [2.2]
    assert limits("8x96x56x56-k7-dw", "conv2d") == [2.6]
    assert limits("8x512x14x14-g32", "conv2d") == [1.3]
    assert limits("8x512x7x7", "conv2d") == []
    assert limits("8x512x7x7", "composition") == [1.0]
    assert limits("8x96x56x56-k7-dw", "torchvision") == [0.25]
    assert limits("8x64x56x56", "openvino") == [1.0]
    half = bounds.verdicts([row("eager", 10.0), row("eager", 9.0, "4x256x28x28-bfloat16")])
    assert [(v["peer"], v["met"]) for v in half] == [("float32", True)]


def test_what_is_deployed_is_held_to_eager_and_to_the_best_plain_network() -> None:
    def deployed(provider: str, ms: float, **other: float) -> measure.Row:
        return row(provider, ms, "resnet50 batch 8", mode="deployed", **other)

    rows = [deployed("aoti", 12.0, against_eager=0.9), deployed("plain aoti", 11.0), deployed("plain onnx", 10.0)]
    found = [(v["peer"], v["ratio"], v["met"]) for v in bounds.verdicts(rows)]
    assert found == [("eager", 0.9, True), ("plain onnx", 1.2, True)]


def test_the_copy_is_of_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    monkeypatch.setattr(Tensor, "copy_", lambda self, source: copied.append(source.numel()))
    providers.copy(TINY, {"input": torch.ones(4, 8, 512, 512)})()
    assert sum(copied) == 9 * 4 * 8 * 512 * 512
    assert max(copied) * 4 <= dcn_ops.sampling.pieces.chunk_bytes()


def test_memory_bounds_count_from_the_plain_convolution() -> None:
    rows = [row("conv2d", 1.0, "x", peak=2**20), row("eager", 1.0, "x", peak=2**20 + 17 * 2**20)]
    assert [(v["mode"], v["met"]) for v in bounds.verdicts(rows)] == [("forward memory", False)]


def test_every_bound_judges_a_case_of_the_suites() -> None:
    names = [case.name for case in cases.SUITES["op"]] + [f"{name} batch 8" for name in cases.MODELS]
    for bound in bounds.BOUNDS:
        assert any(bounds._matches(name, bound) for name in names), bound


def test_a_run_writes_a_report_and_a_picture(tiny: None, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run(Bench(suite="tiny", providers=TORCH, rounds=2, threads=[1], json=str(path)))
    report = json.loads(path.read_text())
    assert {"command", "commit", "machine", "versions", "rows", "bounds"} <= report.keys()
    assert {(r["mode"], r["provider"]) for r in report["rows"]} == {(m, p) for m in measure.MODES for p in TORCH}
    floors = {r["mode"]: r["ms"] for r in report["rows"] if r["provider"] == "conv2d"}
    assert all(r["ratio"] == pytest.approx(r["ms"] / floors[r["mode"]]) for r in report["rows"])
    picture.plot(path, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_what_grows_is_drawn_as_lines(tmp_path: Path) -> None:
    sizes = [row("eager", ms, case) for ms, case in ((1.0, "1x8x4x4"), (3.0, "2x8x4x8"))]
    assert picture.scaling(sizes) == ("output pixels of the batch", {"forward": {"eager": {16: 1.0, 64: 3.0}}})
    threads = [{**row("eager", ms, "1x8x4x4"), "threads": n} for ms, n in ((2.0, 1), (1.0, 2))]
    assert picture.scaling(threads) == ("threads", {"forward": {"eager 1x8x4x4": {1: 2.0, 2: 1.0}}})
    unlike = [row("eager", 1.0, case) for case in ("1x8x4x4", "1x16x4x4")]
    assert picture.scaling(unlike) == ("", {})
    report = {"rows": sizes, "machine": [], "device": "cpu", "versions": {"torch": "2"}, "commit": "x"}
    (tmp_path / "size.json").write_text(json.dumps(report))
    picture.plot(tmp_path / "size.json", tmp_path / "size.png")
    assert (tmp_path / "size.png").stat().st_size > 10_000


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    rows = [
        row("conv2d", 2.0, ratio=1.0),
        row("eager", 3.0, ratio=1.5),
        row("eager", 50.0, mode="training", ratio=25.0),
    ]
    found = bounds.verdicts([*rows, row("openvino", 4.0)])
    report = {"rows": rows, "bounds": found, "command": "dcn-bench suite=x", "commit": "abc"}
    (tmp_path / "x.json").write_text(json.dumps(report))
    (tmp_path / "x.md").write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n")
    document.write(tmp_path / "x.json", tmp_path / "x.md")
    assert (tmp_path / "x.md").read_text().splitlines() == [
        "before",
        "<!-- x -->",
        "| case | forward: `conv2d` ms | ours | training: ours |",
        "| --- | --- | --- | --- |",
        "| 4x256x28x28 | 2.0 | 1.50 | 25 |",
        "",
        "(`dcn-bench suite=x`, commit abc.) 1 of 2 bounds met; missed:",
        "",
        "- forward, eager, against conv2d (bound 1.10): 4x256x28x28 1.50",
        "<!-- /x -->",
        "after",
    ]
    (tmp_path / "y.md").write_text("no marks\n")
    with pytest.raises(ValueError, match="expected the lines '<!-- x -->' and '<!-- /x -->'"):
        document.write(tmp_path / "x.json", tmp_path / "y.md")


@pytest.mark.parametrize(("high", "warned"), [(29.0, False), (31.0, True)])
def test_scattered_times_are_said(high: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    timing.warn_if_scattered({"calm": timing.Time(1.0, (1.0, 1.1)), "x": timing.Time(20.0, (10.0, high))})
    assert (f"half of those of x lie between 10.0 and {high} ms" in caplog.text) == warned


def test_a_missed_bound_has_its_floor() -> None:
    depthwise = [row("conv2d", 1.0, "8x96x56x56-dw"), row("eager", 3.0, "8x96x56x56-dw")]
    dense = [row("conv2d", 8.0, "4x256x28x28"), row("eager", 12.0, "4x256x28x28")]
    share = (4 * 256 * 28**2) / (8 * 96 * 56**2)  # of samples
    floors = document.floors([*depthwise, *dense])
    assert floors == {("4x256x28x28", "forward"): pytest.approx((8 + 3 * share) / 8)}
    found = bounds.verdicts([*depthwise, *dense])
    assert f"4x256x28x28 1.50 (floor {1 + 3 * share / 8:.2f})" in document.missed(found, floors)
    assert "8x96x56x56-dw 3.00\n" in document.missed(found, floors) + "\n"  # it has none
    assert document.floors(dense) == document.floors([*depthwise, *dense, {**dense[0], "threads": 7}]) == {}


@pytest.mark.parametrize("kind", ["missing", "read-only", "without marks"])
def test_a_markdown_file_is_refused_before_the_picture(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = {"rows": [row("eager", 1.0)], "bounds": [], "command": "x", "commit": "x"}
    Path("x.json").write_text(json.dumps({**report, "machine": [], "device": "cpu", "versions": {"torch": "2"}}))
    if kind != "missing":
        Path("x.md").write_text("<!-- x -->\n<!-- /x -->\n" if kind == "read-only" else "")
    if kind == "read-only":  # root may write to every file
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "x.md")
    expected = {
        "missing": "expected a Markdown file",
        "read-only": r"can't write to x\.md",
        "without marks": "lines",
    }
    with pytest.raises((OSError, ValueError), match=expected[kind]):
        draw(Path("x.json"), Path("x.md"))
    assert not Path("docs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("plot=nowhere.json", "error: expected a JSON file of dcn-bench, got plot=nowhere.json"),
        ("suite=dens", "error: expected suite to be one of gpu, op"),
    ],
)
def test_the_command_says_a_mistake_in_one_line(argument: str, answer: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "zoo.scripts.bench", argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(answer)
    assert done.stderr.count("\n") == 1


def test_an_interruption_keeps_what_was_measured(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.rows_of

    def once(case: cases.Case, mode: str, *args: object) -> list[measure.Row]:
        if mode == "training":
            raise KeyboardInterrupt
        return real(case, mode, *args)

    monkeypatch.setattr(measure, "rows_of", once)
    path = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        run(Bench(suite="tiny", providers=TORCH, rounds=2, threads=[1], json=str(path)))
    assert {r["mode"] for r in json.loads(path.read_text())["rows"]} == {"forward"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Bench(suite="dens"), "expected suite to be one of gpu, op, dense"),
        (Bench(case="5x*"), "no case of suite='quick' matches '5x.'; there are .'4x256x28x28'"),
        (Bench(providers=["eagre"]), "expected providers among conv2d, copy, eager"),
        (Bench(modes=["backward"]), "expected modes among forward, training"),
        (Bench(markdown="x.md"), "markdown=x.md needs a JSON file; add plot=FILE"),
        (Bench(rounds=1), "expected at least 2 rounds, got rounds=1"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(config: Bench, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(config)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from Linux' /proc")
def test_the_peak_is_that_of_the_process() -> None:
    code = (
        "import torch; from zoo.scripts.benchmark import memory as m; from pathlib import Path;"
        "torch.ones(2**20); Path('/proc/self/clear_refs').write_text('5'); before = m._resident('VmRSS');"
        "t = torch.ones(50 * 2**18); del t; print(m._resident('VmHWM') - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(50 * 2**20, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_operator_needs_little_more_than_the_convolution(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    case = "8x64x56x56"  # unrolled as a whole: 55 MiB, and as much again for its gradient
    plain, ours = (memory.peak_of(case, "training", provider) for provider in ("conv2d", "eager"))
    assert plain is not None
    assert ours is not None
    assert 0 < ours - plain <= bounds.MEMORY_BUDGET


def test_inputs_are_channels_last_and_offsets_as_wide_as_asked() -> None:
    tensors = cases.Case(batch=4, channels=8, filters=8, height=32, width=32).inputs(1.0, "cpu")
    assert tensors["offset"].std().item() == pytest.approx(1.0, rel=0.02)
    assert tensors["input"].is_contiguous(memory_format=torch.channels_last)
    out = providers.conv2d(cases.Case(batch=4, channels=8, filters=8, height=32, width=32), tensors)()
    assert torch.equal(out, F.conv2d(tensors["input"], tensors["weight"], padding=1))


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = timing.interleaved({name: partial(order.append, name) for name in "ab"}, rounds=3)
    turns = "".join(name for name, _ in groupby(order))
    assert turns == "ab" * (1 + 1 + 3)  # once to guess the repeats, a round to warm up, the rounds
    assert all(low <= median <= high for median, (low, high) in times.values())


def test_phases_of_the_dense_path_run() -> None:
    phases = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "phases.py"))["phases"]
    # A piece is some rows of one image of three.
    found = phases(cases.Case(batch=3, channels=256, filters=4, height=40, width=40))
    assert {"table", "contract", "scatter (sort and bag)"} <= set(found)
    for phase, floor in found.values():
        phase(), floor()  # raise where the two are not of one shape


def test_networks_are_drawn_as_bars() -> None:
    rows = [row("plain", 1.0, f"{name} batch 8", mode="deployed") for name in ("resnet50", "efficientnet_b0")]
    assert picture.scaling(rows) == ("", {})
