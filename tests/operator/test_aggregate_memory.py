"""What an aggregation takes at its peak beside its results and, for the composition, its padded images."""

import pytest
from aggregates import Case
from peak_memory import measure_peaks, needs_resident_memory

import dcn_ops
from dcn_ops.native.library import library
from dcn_ops.sampling.geometry import Padded

LARGE = {
    "few_channels": Case(batch=1, channels=16, size=(300, 300), groups=4),
    "one_channel": Case(batch=1, channels=1, size=(500, 400), groups=1),
    "many_channels": Case(batch=1, channels=64, size=(200, 200), groups=4),
    "batch": Case(batch=6, channels=64, size=(80, 80), groups=4),
}
PREPARE = """
from aggregates import *
import dcn_ops

dcn_ops.set_implementation({implementation!r})
case = {case!r}
inputs, numbers = make_inputs(case), case.numbers
op, backward = torch.ops.dcn_ops.deform_aggregate, torch.ops.dcn_ops.deform_aggregate_backward
"""


@pytest.mark.slow
@needs_resident_memory
@pytest.mark.parametrize("implementation", ["composition", "native"])
@pytest.mark.parametrize("name", LARGE)
def test_a_call_takes_a_quarter_of_the_workspace_limit(name: str, implementation: str) -> None:
    if implementation == "native" and isinstance(reason := library(), str):
        pytest.skip(f"no native kernel: {reason}")
    case = LARGE[name]
    forward, backward = measure_peaks(PREPARE.format(case=case, implementation=implementation))
    # The native kernel pads no image.
    image = Padded.of(case.batch, case.size).rows * case.channels * 4 if implementation == "composition" else 0
    assert forward <= image + dcn_ops.workspace_limit() // 4
    assert backward <= 2 * image + dcn_ops.workspace_limit() // 4
