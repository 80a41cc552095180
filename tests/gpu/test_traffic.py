"""The traffic that ``benchmarks/gpu_traffic.py`` counts, against numbers counted by hand."""

import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no package for this platform")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "gpu_traffic.py"))


def test_a_dense_convolution_moves_what_its_formulas_say(script: dict[str, Any]) -> None:
    costs = script["costs_of"]("32x256x56x56-bfloat16")
    m, taps, channels, filters = 32 * 56 * 56, 9, 256, 256
    columns, image, weights = 2 * m * taps * channels, 2 * m * channels, 2 * taps * channels * filters
    forward = costs["forward"]
    assert forward.products == 2 * m * taps * channels * filters
    assert forward.memory == 2 * image + 2 * m * 3 * taps + weights
    assert forward.caches == 4 * columns + m // 128 * weights + image  # tiles of 128 positions and all filters
    assert costs["products (library)"].products == 2 * forward.products
    assert costs["gather"].memory == columns + image + 16 * m * taps
    assert costs["unroll"].memory >= 2 * columns + image
    assert costs["order"].atomics == m * taps
    assert not any(cost.atomics for name, cost in costs.items() if name not in ("order", "count"))


def test_the_depthwise_gather_reads_the_gradient_once_from_memory(script: dict[str, Any]) -> None:
    costs = script["costs_of"]("8x96x56x56-k7-dw-bfloat16")
    m, taps, channels = 8 * 56 * 56, 49, 96
    gather = costs["depthwise gather"]
    assert gather.memory == 2 * 2 * m * channels + 16 * m * taps
    assert gather.caches > 2 * 2 * 2 * m * taps * channels  # gradient and filter, in two rows each
    assert costs["depthwise samples"].atomics == 0


def test_the_aggregation_adds_what_the_page_says(script: dict[str, Any]) -> None:
    costs = script["costs_of_aggregation"](56, 4)
    assert costs["aggregation backward"].atomics == 4 * 64 * 56 * 56 * 9 * 64
    assert round(costs["aggregation forward"].memory / 1e6) == 95


def test_every_kernel_of_the_table_has_a_line(script: dict[str, Any]) -> None:
    lines = script["lines"]()
    assert all(len(line) == len(script["HEAD"]) for line in lines)
    assert len({line[0] for line in lines}) == 7
