"""The pieces of a backward in Triton's interpreter; ``test_triton.py`` runs this in a process of its own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from interpreted_kernels import _interpreted, gradients  # noqa: F401  (a fixture)

from dcn_ops.conv.kernels.triton import gathered, launch, plan, unrolled
from dcn_ops.conv.kernels.triton.pieces import Piece
from dcn_ops.testing import Case, make_inputs
from dcn_ops.triton import tiles


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """The launches from now on: names and numbers of parts."""
    found = []

    def record(kernel: str, *args: object, **numbers: object) -> None:
        found.append((kernel, numbers.get("SPLITS")))
        plan.launch(kernel, *args, **numbers)

    for module in (launch, gathered, unrolled):
        monkeypatch.setattr(module, "launch", record)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("piece", "offset_groups"), [((2, 32), 1), ((3, 16), 2), ((1, 16), 1)], ids=str)
def test_pieces_do_not_show(
    piece: tuple[int, int],
    offset_groups: int,
    dtype: torch.dtype,
    launched: list[tuple[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "_COLUMNS", 1)
    case = Case(batch=3, channels=32 * offset_groups, size=(3, 4), kernel=(1, 2), offset_groups=offset_groups)
    inputs = make_inputs(case, dtype)
    whole = gradients(inputs, case)
    launched.clear()
    monkeypatch.setattr(unrolled, "piece_of", lambda *_: Piece(*piece))
    for part, of_whole in zip(gradients(inputs, case), whole, strict=True):
        torch.testing.assert_close(part, of_whole)
    of_group = ["count", "order"] + ["gather", "unroll"] * (32 // piece[1])
    of_backward = of_group * -(-3 // piece[0])
    assert [name for name, _ in launched][-len(of_backward) :] == of_backward


@pytest.mark.parametrize("needed", [0, 1, 2, 4])
def test_pieces_of_one_gradient(needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_COLUMNS", 1)
    monkeypatch.setattr(unrolled, "piece_of", lambda *_: Piece(1, 16))
    case = Case(batch=2, channels=32, size=(3, 4), kernel=(1, 2))
    inputs = make_inputs(case, torch.bfloat16)
    whole = gradients(inputs, case)
    needs = tuple(i == needed for i in range(5))
    for part, of_whole, is_needed in zip(gradients(inputs, case, needs), whole, needs, strict=True):
        assert torch.equal(part, of_whole) if is_needed else part is None


def test_parts_of_the_gradient_of_weights_stay_within_the_limit(
    launched: list[tuple[str, object]], limit_workspace: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "device_of", lambda device: tiles.Device("sm_90", 132))
    case = replace(Case(), batch=1, channels=32, filters=32, groups=2, size=(12, 12), kernel=(1, 2))
    inputs = make_inputs(case, torch.bfloat16)
    needs = (False, False, True, False, False)
    whole = gradients(inputs, case, needs)[2]
    launched.clear()
    for parts in (4, 2, 1):
        limit_workspace((parts + 1) * 4 * inputs.weight.numel())
        torch.testing.assert_close(gradients(inputs, case, needs)[2], whole)
    assert [splits for name, splits in launched if name == "weight"] == [4, 2, 1]
