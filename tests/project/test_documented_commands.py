"""Every command line of README, docs and the headers of ``conf/`` is accepted as it stands there.

Hydra composes the config of a ``dcn-*`` command from exactly its overrides, and other scripts' own parsers read
their arguments; nothing runs. ``<...>`` is a placeholder for one word, the word ``...`` for more arguments.
"""

import argparse
import importlib
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed.run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
COMMANDS = {name: target.partition(":")[0] for name, target in PROJECT["scripts"].items()}
MARKDOWN = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
HEADERS = [*sorted((REPOSITORY / "conf").rglob("*.yaml")), *sorted((REPOSITORY / "examples").glob("*.py"))]
FENCE = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A command line and the paragraph or table row that it stands in."""

    file: str
    words: tuple[str, ...]
    around: str

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.words)}"


def code_of(text: str) -> list[tuple[str, str]]:
    """Return the shell lines of a Markdown text, each with the paragraph or table row around it."""
    blocks = [(line, "") for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    parts = re.split(r"\n\n|\n(?=\|)", rest)
    return blocks + [(code, part) for part in parts for code in re.findall(r"`([^`]+)`", part)]


def commands_in(file: Path) -> list[Line]:
    text = file.read_text()
    if file.suffix == ".md":
        code = code_of(text)
    else:
        code = [(line, "") for line in re.findall(r"^(?:#   )?((?:dcn-|python ).*)$", text, re.MULTILINE)]
    variables = dict(re.findall(r'`([A-Z]+)="([^"]+)"`', text))
    found = []
    for line, around in code:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        for command in re.sub(r"<\w+>", "x", line).split("&&"):
            words = split(command)
            if words:
                found.append(Line(str(file.relative_to(REPOSITORY)), words, around))
    return found


def split(command: str) -> tuple[str, ...]:
    """Return the words from the first that names a program of ours; none if no word does."""
    if not re.match(r"(dcn-|python |torchrun |accelerate launch |timeout )", command.strip()):
        return ()
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    start = next((i for i, word in enumerate(words) if re.match(r"dcn-|python$|torchrun$|accelerate$", word)), None)
    launched = start is not None and (
        words[start].startswith("dcn-") or {"-m", "--no-python", "--no_python"} & set(words) or ".py" in command
    )
    return tuple(words[start:]) if launched else ()  # else the name of a launcher or of one of its options


LINES = list(dict.fromkeys(line for file in MARKDOWN + HEADERS for line in commands_in(file)))


def program(words: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the module or file that a command line runs, and its arguments."""
    head, *rest = words
    if head in COMMANDS:
        return COMMANDS[head], rest
    if head == "torchrun":
        arguments = torch.distributed.run.parse_args(rest)
        return launched(arguments)
    if head == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        return launched(launch_command_parser().parse_args(rest[1:]))
    assert head == "python", f"pyproject.toml names no command {head}"
    return (rest[1], rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])


def launched(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    command = arguments.training_script, arguments.training_script_args
    return program((command[0], *command[1])) if arguments.no_python else command


def file_of(module: str) -> Path:
    """Return the file of a module of the repository, which installs scripts/ as zoo.scripts."""
    return REPOSITORY / f"{re.sub('^zoo.scripts', 'scripts', module).replace('.', '/')}.py"


class Accepted(Exception):
    """A script's own parser has read the arguments."""


def check_arguments(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a script's parser read the arguments; a script without parser takes none."""
    file = REPOSITORY / name if name.endswith(".py") else file_of(name)
    if "argparse" not in file.read_text():
        assert not arguments
        return
    parse = argparse.ArgumentParser.parse_args

    def accept(self: argparse.ArgumentParser) -> None:
        parse(self)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept)
    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    monkeypatch.syspath_prepend(str(file.parent))
    with pytest.raises(Accepted):
        runpy.run_path(str(file), run_name="__main__")


def compositions(arguments: list[str]) -> list[list[str]]:
    """Return the arguments of each run of a sweep, or of the single run."""
    if not {"-m", "--multirun"} & set(arguments):
        return [arguments]
    # A sweeper is of an extra of its own, and composes no run.
    own = [a for a in arguments if not a.startswith(("-", "hydra/sweeper", "hydra.sweeper"))]
    choices = [values(override) for override in OverridesParser.create().parse_overrides(own)]
    return [list(choice) for choice in itertools.product(*choices)]


def values(override: Override) -> list[str]:
    """Return an override with each of its values; with both ends of an interval."""
    if not override.is_sweep_override():
        return [override.input_line]
    value = override.value()
    ends = [value.start, value.end] if override.is_interval_sweep() else override.sweep_string_iterator()
    return [f"{override.key_or_group}={one}" for one in ends]


def composed(
    module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> DictConfig:
    """Return the config that a command prints instead of running with it."""
    monkeypatch.setattr(sys, "argv", [module, *arguments, "--cfg", "job"])
    capsys.readouterr()
    importlib.import_module(module).main()
    return OmegaConf.create(capsys.readouterr().out)


def check_values(config: DictConfig, arguments: list[str]) -> None:
    """Compare a config with its overrides; the last override of a key counts."""
    overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a])
    for key, wanted in {o.key_or_group: o.value() for o in overrides}.items():
        value = OmegaConf.select(config, key)
        if value is not None and not isinstance(value, DictConfig):  # else a choice of a config group
            assert OmegaConf.create([value]) == OmegaConf.create([wanted])


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_documented_command_is_accepted(
    line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, arguments = program(line.words)
    if name not in COMMANDS.values():
        check_arguments(name, arguments, monkeypatch)
        return
    try:
        for run in compositions([a for a in arguments if a != "--help"]):
            check_values(composed(name, run, monkeypatch, capsys), run)
    except SystemExit as refused:  # the text may quote this error, in exactly these words
        message = str(refused.code).splitlines()[0]
        assert f'"{message}"' in line.around, message + capsys.readouterr().err


def test_there_are_lines_of_every_command_and_kind() -> None:
    assert {line.words[0] for line in LINES} >= {*COMMANDS, "python", "torchrun", "accelerate"}
    assert len(LINES) > 60


@pytest.mark.parametrize("name", COMMANDS)
def test_no_config_group_hides_a_key(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra reads ``key=value`` as a choice if a folder of that name is next to the command's config."""
    main = file_of(COMMANDS[name]).read_text()
    root, config = re.search(r'config_path="pkg://([\w.]+)", config_name="(\w+)"', main).groups()
    folder = REPOSITORY / root.removeprefix("zoo.").replace(".", "/")
    defaults = OmegaConf.load(folder / f"{config}.yaml").defaults
    chosen = {key for entry in defaults if isinstance(entry, DictConfig) for key in entry}
    keys = set(composed(COMMANDS[name], [], monkeypatch, capsys))
    assert {key for key in keys if (folder / key).is_dir()} <= chosen
