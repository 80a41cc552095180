"""Ctrl-C in the commands: one line, status 130, and files that are whole or absent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from zoo.scripts.config.command import errors_in_one_line


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


# The work of each command is replaced by a Ctrl-C. Hydra is real, and changes the logging of its process.
PROGRAM = """
import importlib, json, signal, sys

def interrupted(*_):
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
for name, arguments in json.loads(sys.argv[1]).items():
    module = importlib.import_module(f"zoo.scripts.{name}")
    module.run = interrupted
    sys.argv = [f"dcn-{name}", *arguments]
    try:
        module.main()
    except SystemExit as end:
        print(name, end.code)
"""


def test_every_command_ends_with_130(tmp_path: Path) -> None:
    given = {name: [*arguments, f"hydra.run.dir={tmp_path}"] for name, arguments in COMMANDS.items()}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.endswith(" 130")] == [
        f"{name} 130" for name in COMMANDS
    ]
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("interrupted; files with their final name")
    ]
    assert len(lines) == len(COMMANDS)
    assert "Traceback" not in done.stderr


# In a process of its own as well: a signal that came late would end the tests.
BLOCKS = """
import signal, sys
from pathlib import Path
from zoo.scripts.storage.files import uninterrupted

first, second = map(Path, sys.argv[1:])
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with uninterrupted():
        first.write_text("1")
        signal.raise_signal(signal.SIGINT)
        second.write_text("2")
except KeyboardInterrupt:
    print("interrupted after", first.read_text(), second.read_text())
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

signal.signal(signal.SIGINT, signal.SIG_IGN)
with uninterrupted():
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.raise_signal(signal.SIGINT)
print("ignored")
"""


def test_ctrl_c_waits_for_the_files_of_a_block_and_leaves_handlers_of_others_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", BLOCKS, str(tmp_path / "first"), str(tmp_path / "second")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["interrupted after 1 2", "ignored"]
