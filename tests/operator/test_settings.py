"""Settings: a choice is kept or it raises, a block is of its thread, and the compile caches tell them apart."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import dcn_ops
from dcn_ops.conv import contract
from dcn_ops.settings import Settings, current
from dcn_ops.testing import Case, make_inputs

op = torch.ops.dcn_ops.deform_conv2d


@pytest.fixture(autouse=True)
def _defaults_again() -> Iterator[None]:
    yield
    dcn_ops.set_implementation("auto")
    dcn_ops.set_workspace_limit(Settings().workspace_limit)


def tag() -> str:
    return torch.compiler.config.cache_key_tag


def in_a_thread(function):
    with ThreadPoolExecutor() as pool:
        return pool.submit(function).result()


def test_the_choice_is_what_was_set_and_one_of_four() -> None:
    assert dcn_ops.implementation() == "auto"
    dcn_ops.set_implementation("composition")
    with pytest.raises(
        ValueError, match="expected an implementation among auto, composition, native, triton, got name='tritn'"
    ):
        dcn_ops.set_implementation("tritn")
    assert dcn_ops.implementation() == "composition"


def test_the_workspace_limit_is_what_was_set() -> None:
    dcn_ops.set_workspace_limit(2**20)
    assert dcn_ops.workspace_limit() == 2**20


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (-1, ValueError, "expected a number of bytes, got size=-1"),
        (16e6, TypeError, r"expected a whole number of bytes, got size=16000000\.0; write an int"),
        (float("nan"), TypeError, "expected a whole number of bytes, got size=nan"),
        (True, TypeError, "expected a whole number of bytes, got size=True"),
        ("64 MiB", TypeError, "expected a whole number of bytes, got size='64 MiB'"),
    ],
)
def test_another_workspace_limit_is_refused(size: object, error: type[Exception], message: str) -> None:
    before = dcn_ops.workspace_limit()
    with pytest.raises(error, match=message):
        dcn_ops.set_workspace_limit(size)
    with pytest.raises(error, match=message), dcn_ops.settings(workspace_limit=size):
        raise AssertionError("a block with a wrong setting must not run")
    assert dcn_ops.workspace_limit() == before


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"expected settings among implementation, .*, got workspace"):
        dcn_ops.settings(workspace=2**20).__enter__()


def test_a_block_changes_what_it_names_and_puts_that_back() -> None:
    with dcn_ops.settings(workspace_limit=2**20):
        assert current() == Settings(workspace_limit=2**20)
        with dcn_ops.settings(implementation="composition"):
            assert current() == Settings(workspace_limit=2**20, implementation="composition")
        assert current() == Settings(workspace_limit=2**20)
    assert current() == Settings()


def test_a_block_puts_back_its_own_when_an_error_leaves_it() -> None:
    before = tag()
    with pytest.raises(KeyError), dcn_ops.settings(workspace_limit=1):
        raise KeyError
    assert current() == Settings()
    assert tag() == before


def test_a_choice_for_the_process_within_a_block_stays() -> None:
    with dcn_ops.whole_operators():
        dcn_ops.set_implementation("composition")
        assert current() == Settings(implementation="composition", whole_operators=True)
    assert current() == Settings(implementation="composition")
    with dcn_ops.settings(implementation="composition"):
        inside = tag()
    assert tag() == inside


def test_blocks_are_of_their_thread() -> None:
    entered, left = Barrier(2), Barrier(2)

    def other() -> None:
        with dcn_ops.whole_operators():
            entered.wait()
            left.wait()

    with ThreadPoolExecutor() as pool:
        running = pool.submit(other)
        entered.wait()
        here = current()
        with dcn_ops.whole_operators():
            left.wait()
        running.result()
    assert here == Settings()
    assert current() == Settings()
    assert in_a_thread(current) == Settings()


def test_the_backward_takes_the_settings_of_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inputs = [], make_inputs(Case()).map(torch.Tensor.requires_grad_)
    with dcn_ops.settings(workspace_limit=2**20):
        loss = op(*inputs, **Case().integers).sum()
    original = contract.check_gradient
    monkeypatch.setattr(contract, "check_gradient", lambda *args: seen.append(current()) or original(*args))
    in_a_thread(loss.backward)  # as autograd does for a GPU
    assert seen == [Settings(workspace_limit=2**20)]


def test_compile_caches_tell_the_choices_apart_and_every_thread_does() -> None:
    tags = [tag()]
    for name, autotune in (("composition", False), ("triton", False), ("triton", True)):
        dcn_ops.set_implementation(name, autotune=autotune)
        tags.append(tag())
        assert in_a_thread(tag) == tags[-1]
    dcn_ops.set_implementation("auto")
    dcn_ops.set_workspace_limit(2**21)
    tags.append(tag())
    dcn_ops.set_workspace_limit(Settings().workspace_limit)
    with dcn_ops.whole_operators():
        tags.append(tag())
    assert len(set(tags)) == 6
    assert tag() == tags[0]
    assert in_a_thread(tag) == tags[0]


def test_the_users_own_part_of_the_key_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tag()
    with torch.compiler.config.patch(cache_key_tag=f"mine;{before}"):
        dcn_ops.set_implementation("composition")
        assert tag().startswith("mine;")
        with dcn_ops.settings(workspace_limit=1):
            assert tag().startswith("mine;")
        assert tag().count("dcn_ops:") == 1


def test_triton_asked_for_on_the_cpu_raises() -> None:
    dcn_ops.set_implementation("triton")
    with pytest.raises(ValueError, match=r"Triton kernels need a GPU, got input\.device=cpu.*set_implementation"):
        op(*make_inputs(Case()), **Case().integers)


def test_triton_asked_for_where_it_is_missing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcn_ops.triton.support.is_installed", lambda: False)
    dcn_ops.set_implementation("triton")
    with pytest.raises(ValueError, match="Triton is not installed; pip install triton"):
        op(*make_inputs(Case()), **Case().integers)
