"""Ctrl-C in the commands: one line, status 130, and files that are whole or absent."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from zoo.scripts.config.command import errors_in_one_line
from zoo.scripts.storage.files import uninterrupted


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("message", "status"), [((), 130), (("",), 130), (("terminated",), 143)])
def test_an_interruption_is_one_line(
    message: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, errors_in_one_line(left="whole"):
        raise KeyboardInterrupt(*message)
    assert end.value.code == status
    word = "terminated" if status == 143 else "interrupted"
    assert capsys.readouterr().err == f"{word}; files with their final name are whole\n"


COMMANDS = {
    "evaluate": ["checkpoint=x"],
    "predict": ["checkpoint=x", "images=x"],
    "visualize": ["name=resnet18"],
    "share": ["checkpoint=x", "folder=x"],
    "migrate": ["checkpoint=x", "folder=x"],
    "bench": [],
    "export": ["checkpoint=x"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_130(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its work is replaced by a Ctrl-C; Hydra is real."""
    module = __import__(f"zoo.scripts.{name}", fromlist=["run"])

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "run", interrupted)
    monkeypatch.setattr(sys, "argv", [f"dcn-{name}", *COMMANDS[name], f"hydra.run.dir={tmp_path}"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # dcn-export's, which would outlive the test
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted; files with their final name are complete")


def test_ctrl_c_waits_for_the_files_of_a_block(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def write() -> None:
        first.write_text("1")
        os.kill(os.getpid(), signal.SIGINT)
        second.write_text("2")

    with pytest.raises(KeyboardInterrupt), uninterrupted():
        write()
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_block_leaves_a_handler_of_others_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
