"""Nearly every timm family: one architecture each gives the results that the run over all has recorded."""

from pathlib import Path

import pytest

from zoo.coverage import examine, train
from zoo.coverage_table import read, table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "coverage.jsonl"
DOCUMENT = Path(__file__).parents[2] / "docs" / "zoo.md"

LONG = 40  # seconds: four families (samvit, nasnet, two Inceptions) are left to the run over all architectures


def quickest_of_each_family():
    quickest = {}
    for result in read(RESULTS):
        if "identical" in result:
            known = quickest.setdefault(result["family"], result)
            if result["seconds"] < known["seconds"]:
                quickest[result["family"]] = result
    return [result for result in quickest.values() if result["seconds"] < LONG]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of deprecated architectures, and of their own code
@pytest.mark.parametrize("expected", quickest_of_each_family(), ids=lambda result: result["name"])
def test_an_architecture_converts_and_computes_the_same(expected):
    result = examine(expected["name"])
    assert (result["converted"], result["identical"]) == (expected["converted"], True)


# Networks with an in-place operation or an addition after a convolution, and one that calls its convolutions twice.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "test_nfnet",
        "efficientvit_b0",
        "crossvit_9_dagger_240",
        "twins_svt_small",
        "mobilenetv3_small_100",
        "coat_tiny",
    ],
)
def test_an_architecture_trains(name):
    assert train(name) == {"trains": True}


def test_the_document_has_the_table_of_the_run():
    assert table(read(RESULTS)) in DOCUMENT.read_text()
