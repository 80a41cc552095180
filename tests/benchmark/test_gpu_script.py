"""What is to be measured on a GPU runs here on a CPU as far as it can, and its floors are counted right."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo.scripts.benchmark import gpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Script = dict[str, Callable[..., Any]]


@pytest.fixture(scope="module")
def script() -> Script:
    return runpy.run_path(str(BENCHMARKS / "aggregate_gpu.py"))


def test_a_dry_run_measures_the_aggregation_and_its_peers(tmp_path: Path) -> None:
    results = sorted((BENCHMARKS / "results").iterdir())
    command = [sys.executable, BENCHMARKS / "gpu.py", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    for provider in ("ours", "ours, float32 maps", "depthwise 7x7", "attention", "grid_sample", "composition"):
        assert sum(f" {provider}  " in line for line in done.stdout.splitlines()) == 8, done.stdout
    assert done.stdout.count("\n+ python -m zoo.scripts.bench") == 3
    assert sorted((BENCHMARKS / "results").iterdir()) == results


def test_a_dry_run_names_the_candidates_and_counts_their_bytes() -> None:
    command = [sys.executable, BENCHMARKS / "gpu.py", "--only", "forward", "--dry-run"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert not any("aggregate_gpu" in line or "zoo.scripts.bench" in line for line in lines)
    counted = {line[:68].strip(): float(line.split()[-4]) for line in lines if line.endswith("GB through L2")}
    today, near = (
        f"32x256x56x56-bfloat16      128x256x32 16 warps 3 stages{end}" for end in (", today", " flat near")
    )
    neighbours, weights = 4 * 32 * 56**2 * 9 * 256 * 2, 32 * 56**2 // 128 * 9 * 256**2 * 2
    assert counted[today] == pytest.approx((neighbours + weights) / 1e9, abs=5e-3)
    assert weights / 1e9 < counted[near] < (weights + neighbours / 4) / 1e9


def test_the_pixels_of_a_tile_are_counted_once() -> None:
    candidates = runpy.run_path(str(BENCHMARKS / "candidates_gpu.py"))
    case = replace(candidates["case_named"]("32x256x56x56-bfloat16"), height=9, width=7)
    assert candidates["_pixels"](case, 63, strips=True) == 63
    one, eight = (candidates["_pixels"](case, tile, strips=False) for tile in (1, 8))
    assert 63 * 9 < one <= 63 * 36
    assert eight < one / 2


def test_the_floor_counts_the_tensors(script: Script) -> None:
    batch, size, groups = 2, 4, 3
    call, tensors = script["providers"](batch, size, groups, "cpu")["ours"]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = call(*leaves)
    gradients = torch.autograd.grad(out, leaves, out)
    forward = sum(t.numel() * t.element_size() for t in (*tensors, out))
    backward = forward + sum(t.numel() * t.element_size() for t in gradients)  # it reads a gradient like the output
    assert script["floor"](batch, size, groups, 2, "forward")["bytes"] == forward
    training = script["floor"](batch, size, groups, 2, "training")
    assert training["bytes"] == forward + backward
    assert training["atomic_additions"] == 2 * 4 * 4 * 3 * 9 * 4 * 16  # samples, neighbours, channels


def test_a_wrong_provider_is_not_timed(script: Script) -> None:
    call, tensors = script["providers"](2, 4, 3, "cpu")["ours"]
    script["check"]("ours", call, tensors, 3)
    with pytest.raises(ValueError, match="nearly differs from the reference by"):
        script["check"]("nearly", lambda *t: 1.03 * call(*t), tensors, 3)


def test_a_run_goes_on_where_one_of_the_same_commit_stopped(tmp_path: Path) -> None:
    about = {"commit": "abc", "device": "H100", "versions": {"torch": "2"}}
    measured = partial(gpu.measured, tmp_path / "rows.json")
    assert measured(about) == []
    (tmp_path / "rows.json").write_text(json.dumps({**about, "rows": [{"ms": 1}]}))
    assert measured(about | {"commit": "abc-dirty"}) == [{"ms": 1}]
    for change in ({"commit": "123"}, {"device": "A100"}, {"versions": {"torch": "3"}}):
        assert measured(about | change) == []


def test_columns_of_some_images_are_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their launches do nothing here; the call itself is what a GPU makes."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import candidates_gpu
    import without_gpu

    case = replace(
        candidates_gpu.case_named("32x256x56x56-bfloat16"), batch=3, channels=16, filters=8, height=5, width=6
    )
    with without_gpu.launching_nothing():
        (out,) = candidates_gpu.columns_step(case, 2, "cpu")()
    assert out.shape == (3, 8, 5, 6)
