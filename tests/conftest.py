import os

# On tensors this small, threads do little but wait for each other; and two runs of a training give the same losses
# only on as many threads. Before torch is imported, and for every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from hypothesis import settings

import dcn_ops
from dcn_ops.conv.kernels import tiny
from dcn_ops.native import library as native_library
from dcn_ops.testing import CASES, Case

torch.set_num_threads(1)

settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None, database=None)
settings.register_profile("long", settings.get_profile("ci"), max_examples=10_000, derandomize=False)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def limit_workspace() -> Iterator[Callable[[int], None]]:
    """Return a function that limits the memory of every call in the test."""
    with ExitStack() as stack:
        yield lambda size: stack.enter_context(dcn_ops.settings(workspace_limit=size))


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the operator do without its native kernel, as without a C++ compiler."""
    monkeypatch.setattr(native_library, "_found", "there is no compiler")


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=["cpu", "tiny", "native"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the operator take one of the three, whatever the size; the native kernel wherever it doesn't refuse."""
    if request.param == "native":
        if isinstance(reason := native_library.library(), str):
            pytest.skip(f"no native kernel: {reason}")
        yield
        return
    monkeypatch.setattr(tiny, "MAX_WORK", {"cpu": -1, "tiny": 2**62}[request.param])
    with dcn_ops.settings(implementation="composition"):
        yield


@pytest.fixture
def native() -> Iterator[None]:
    """Run the test with the native kernel; skip it where there is none."""
    if isinstance(reason := native_library.library(), str):
        pytest.skip(f"no native kernel: {reason}")
    with dcn_ops.settings(implementation="native"):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Return a function that sets the number of threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
