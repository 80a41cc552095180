"""The choice of an implementation is kept, or it raises."""

from collections.abc import Iterator

import pytest
import torch

import dcn_ops
from dcn_ops import library
from dcn_ops.testing import Case, make_inputs

op = torch.ops.dcn_ops.deform_conv2d


@pytest.fixture(autouse=True)
def _auto_again() -> Iterator[None]:
    yield
    dcn_ops.set_implementation("auto")


def test_the_choice_is_what_was_set_and_one_of_three() -> None:
    assert dcn_ops.implementation() == "auto"
    dcn_ops.set_implementation("composition")
    with pytest.raises(
        ValueError, match="expected an implementation among auto, composition, triton, got name='tritn'"
    ):
        dcn_ops.set_implementation("tritn")
    assert dcn_ops.implementation() == "composition"


def test_compile_caches_tell_the_choices_apart() -> None:
    tags = [torch.compiler.config.cache_key_tag]
    for name, autotune in (("composition", False), ("triton", False), ("triton", True)):
        dcn_ops.set_implementation(name, autotune=autotune)
        tags.append(torch.compiler.config.cache_key_tag)
    dcn_ops.set_implementation("auto")
    assert len(set(tags)) == 4
    assert torch.compiler.config.cache_key_tag == tags[0]


def test_triton_asked_for_on_the_cpu_raises() -> None:
    dcn_ops.set_implementation("triton")
    with pytest.raises(ValueError, match=r"Triton kernels need a GPU, got input\.device=cpu.*set_implementation"):
        op(*make_inputs(Case()), **Case().integers)


def test_triton_asked_for_where_it_is_missing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_triton", lambda: None)
    dcn_ops.set_implementation("triton")
    with pytest.raises(ValueError, match="Triton is not installed; pip install triton"):
        op(*make_inputs(Case()), **Case().integers)
