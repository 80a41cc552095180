"""The memory of training on a GPU, counted without one: the implementation's own code, on tensors without data."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no package for this platform")

from zoo.scripts.benchmark.cases import SUITES, Case

from dcn_ops.conv.kernels.triton import call, launch, pieces, unrolled
from dcn_ops.conv.kernels.triton.pieces import Piece
from dcn_ops.conv.problem import make_problem

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = {case.name: case for case in SUITES["gpu"] if case.dtype == "bfloat16"}
SMALL = Case(batch=6, channels=64, filters=48, height=12, width=12, dtype="bfloat16")


@pytest.fixture(scope="module")
def script() -> dict[str, Callable[..., Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return runpy.run_path(str(BENCHMARKS / "gpu_memory.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))


def call_of(case: Case, script: dict[str, Callable[..., Any]]) -> call.Call:
    tensors, conv = script["tensors_of"](case), case.conv
    integers = conv.stride, conv.padding, conv.dilation, conv.groups, conv.offset_groups
    return call.call_of(
        make_problem(tensors["input"], tensors["offset"], tensors["weight"], None, tensors["mask"], *integers)
    )


@pytest.mark.parametrize("name", CASES)
def test_training_takes_at_most_a_fifth_more_than_the_plain_convolution(name: str, script: dict[str, Any]) -> None:
    peak, cudnn = script["peak_of"](CASES[name]), script["cudnn_peaks"]()[name]
    assert script["in_bench"](peak, cudnn - peak.maps // 2) <= 1.2
    if CASES[name].batch > 1 and "-dw" not in name:  # 49 taps of a depthwise layer have maps larger than its images
        assert peak.ours <= 1.2 * cudnn


@pytest.mark.parametrize("name", [name for name in CASES if "-dw" not in name and "-g" not in name])
def test_the_pieces_take_what_they_are_chosen_for(name: str, script: dict[str, Any]) -> None:
    of = call_of(CASES[name], script)
    if not launch._gathers(of, False):
        return
    peak = script["peak_of"](CASES[name])
    counted = sum(pieces.workspace(of.sizes(), pieces.piece_of(of.sizes(), of.limit())).values())
    assert 0.99 * counted <= peak.workspace <= 1.01 * counted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("piece", [Piece(6, 64), Piece(6, 32), Piece(2, 64), Piece(4, 32)], ids=str)
def test_every_kind_of_piece_is_counted(
    piece: Piece, layout: torch.memory_format, dtype: str, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_COLUMNS", 1)
    monkeypatch.setattr(unrolled, "piece_of", lambda *_: piece)
    original = script["tensors_of"]
    case = Case(**{**vars(SMALL), "dtype": dtype})

    def tensors_of(case: Case) -> dict[str, torch.Tensor]:
        tensors = original(case)
        return tensors | {
            "weight": torch.empty(tensors["weight"].shape, device="meta", dtype=tensors["weight"].dtype)
        }

    if layout is torch.contiguous_format:
        monkeypatch.setitem(script["peak_of"].__globals__, "tensors_of", tensors_of)
    of = call_of(case, {"tensors_of": tensors_of if layout is torch.contiguous_format else original})
    counted = pieces.workspace(of.sizes(), piece)
    assert script["peak_of"](case).workspace == pytest.approx(sum(counted.values()), rel=0.02), counted


def test_pieces_take_the_fewest_launches_within_the_limit() -> None:
    sizes = pieces.Sizes(32, 256, 256, 1, 9, 1, (56, 56), 56 * 56, 3, 2, 2, False)
    for limit in (2**22, 2**24, 2**26, 2**28, 2**40):
        piece = pieces.piece_of(sizes, limit)
        size = sum(pieces.workspace(sizes, piece).values())
        for images in range(1, 33):
            for depth in (32, 64, 128, 256):
                other = Piece(images, depth)
                other_size = sum(pieces.workspace(sizes, other).values())
                fits = other_size <= limit
                assert not fits or (
                    size <= limit and pieces.launches(sizes, piece) <= pieces.launches(sizes, other)
                )
                assert size <= limit or size <= other_size
    assert pieces.piece_of(sizes, 2**40) == Piece(32, 256)
    assert pieces.piece_of(sizes, 2**24, True).depth == 256


@pytest.mark.parametrize(("depth", "parts"), [(256, [256, 128, 64, 32]), (96, [96, 48]), (136, [136]), (24, [24])])
def test_parts_of_channels_begin_at_multiples_of_16_bytes(depth: int, parts: list[int]) -> None:
    assert pieces._depths(depth) == parts


def test_a_limit_above_the_default_is_what_pieces_get(
    script: dict[str, Any], limit_workspace: Callable[[int], None]
) -> None:
    of = call_of(CASES["32x512x28x28-bfloat16"], script)
    assert of.limit() == 2 * of.sizes().plain_bytes() // 5 - of.sizes().map_bytes()
    assert call_of(SMALL, script).limit() == pieces.LEAST
    for limit in (2**26 + 1, 1000):
        limit_workspace(limit)
        assert of.limit() == limit
