"""What a call takes at its peak beside its results, its images within their border, and their gradients."""

import pytest
from peak_memory import measure_peaks, needs_resident_memory

import dcn_ops
from dcn_ops.sampling.geometry import Padded
from dcn_ops.testing import Case

# Few channels on large images, where tables and sorts weigh more than columns; and many.
LARGE = {
    "dense": Case(batch=1, channels=16, filters=16, size=(300, 300)),
    "depthwise": Case(batch=1, channels=16, filters=16, size=(300, 300), groups=16),
    "offset_groups": Case(batch=1, channels=16, filters=16, size=(200, 200), offset_groups=4),
    "one_channel": Case(batch=1, channels=1, filters=4, size=(500, 400)),
    "many_channels": Case(batch=1, channels=64, filters=32, size=(200, 200)),
    "batch": Case(batch=6, channels=32, filters=16, size=(100, 100)),
}
PREPARE = """
from dcn_ops.testing import *

case = {case!r}
inputs, numbers = make_inputs(case), case.integers
op, backward = torch.ops.dcn_ops.deform_conv2d, torch.ops.dcn_ops.deform_conv2d_backward
"""


@needs_resident_memory
@pytest.mark.parametrize("name", LARGE)
def test_a_call_takes_half_of_the_workspace_limit_and_leaves_the_rest_to_holes(name: str) -> None:
    case = LARGE[name]
    forward, backward = measure_peaks(PREPARE.format(case=case))
    image = Padded.of(case.batch, case.size).rows * case.channels * 4
    assert forward <= image + dcn_ops.workspace_limit() // 2
    assert backward <= 2 * image + dcn_ops.workspace_limit() // 2
