"""The guard of dcn-export, against the results behind docs/runtimes.md."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import timm
from torch import nn
from zoo.scripts.deploy import guard
from zoo.scripts.deploy.guard import Layer, Wish

import zoo
from dcn_ops import DCNv4, DeformConv2d

REPOSITORY = Path(__file__).parents[2]
RESULTS = json.loads((REPOSITORY / "benchmarks/results/runtimes.json").read_text())
USUAL = Wish(
    target="onnx", dynamic="batch", dtype="float32", int8=False, decompose=False, sampling="grid_sample", opset=20
)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def test_the_guard_reads_what_the_results_say() -> None:
    from conformance.known import failures

    assert guard.known() == failures(RESULTS)
    assert {name for forms in guard.ROUTES.values() for name in forms.values()} == set(guard.known())


def wishes() -> Iterator[Wish]:
    for target in guard.ROUTES:
        for decompose, sampling in ((False, "grid_sample"), (True, "grid_sample"), (True, "gather")):
            for opset in (18, 19, 20, 21, 22) if target == "onnx" else (20,):
                for int8 in (False, True) if target == "onnx" else (False,):
                    yield replace(
                        USUAL, target=target, decompose=decompose, sampling=sampling, opset=opset, int8=int8
                    )


def asked(wish: Wish, question: object) -> Wish:
    shape = question.shape
    layer = Layer(channels=shape.channels, groups=shape.groups, offset_groups=shape.offset_groups, mask=shape.mask)
    dynamic = "size" if len(question.axes) > 1 else "batch" if question.axes else "none"
    return replace(wish, dtype=question.dtype, dynamic=dynamic, layers=frozenset([layer]))


def refusal(wish: Wish) -> str:
    try:
        guard.check(wish)
    except ValueError as error:
        return str(error)
    return "written"


def test_every_wrong_or_refused_cell_is_refused_and_every_right_one_is_written() -> None:
    from conformance.cases import CASES
    from conformance.known import features

    refused = 0
    for wish in wishes():
        route = wish.route()
        cells = RESULTS[route]["cells"] if route else {}
        bad = {case for case, cell in cells.items() if cell["answer"] in ("wrong", "refused")}
        always = any(not features(CASES[case]) for case in bad)  # then no layer is written
        for case, question in CASES.items():
            if question.dtype == "float64" or case in ("batch 0", "batch 3") or not question.specified:
                continue  # no export asks them
            wish_of_case = asked(wish, question)
            if case in bad or always:
                assert "; use " in refusal(wish_of_case), f"{wish.target}, {route}: {case}"
                refused += 1
            elif wish.target not in ("torchscript", "openvino"):  # whose rules for whole networks are stricter
                guard.check(wish_of_case)
    assert refused > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "opset 20 .* refuses the case 'bfloat16'; use dtype=float16, got dtype=bfloat16"),
        ({"target": "openvino", "dtype": "bfloat16"}, "wrong scores for a bfloat16 program.*; use dtype=float16"),
        ({"int8": True, "decompose": True, "sampling": "gather"}, "use decompose=false, got decompose=true"),
        ({"int8": True, "opset": 18, "sampling": "gather"}, "use decompose=false opset=19, got .* opset=18"),
        ({"target": "torchscript", "decompose": True}, "constant sizes; use dynamic=none, got dynamic=batch"),
        (
            {"target": "ncnn", "dynamic": "none", "layers": frozenset([Layer(channels=8, offset_groups=8)])},
            r"ncnn: .* is wrong by .*channels=8.*; use another target, such as onnx or openvino",
        ),
    ],
)
def test_a_refusal_names_what_is_wrong_and_the_cure(changes: dict, message: str) -> None:
    wish = replace(USUAL, **changes)
    with pytest.raises(ValueError, match=message):
        guard.check(wish)
    plain = {"dtype": "float32", "int8": False, "decompose": False, "layers": frozenset()}
    guard.check(replace(wish, **plain))


def test_offset_groups_of_several_channels_are_written_for_ncnn() -> None:
    guard.check(
        replace(USUAL, target="ncnn", dynamic="none", layers=frozenset([Layer(channels=8, offset_groups=4)]))
    )


def test_the_layers_of_a_network() -> None:
    model = nn.Sequential(DeformConv2d(8, 4, 3, groups=2, offset_groups=8), DCNv4(32, group=2), nn.Conv2d(4, 4, 1))
    expected = {Layer(channels=8, groups=2, offset_groups=8), Layer(channels=32, offset_groups=2)}
    assert guard.layers(model) == expected
    converted = zoo.inject_(timm.create_model("test_resnet"))
    assert guard.layers(converted)
