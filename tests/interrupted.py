"""A training that is interrupted where a test says."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from zoo.scripts.training import state


@contextmanager
def after_first_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the training in the block right after it has written its first state, and expect that."""

    def save_and_crash(*args: object) -> None:
        original(*args)
        raise KeyboardInterrupt

    original = state.save
    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save_and_crash)
        with pytest.raises(KeyboardInterrupt):
            yield
