"""The ``--help`` of the commands: each option with its default and meaning, and each preset of ``conf/``."""

import dataclasses
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zoo import DCNConfig, conf  # type: ignore[attr-defined]  # installed from conf/

from .schema import DCN, Data, InspectedData

_ARGUMENT = re.compile(r"^    (\w+): (.+(?:\n     .+)*)", re.MULTILINE)


def show_help(command: str, schema: type, config: Any, groups: Iterable[str]) -> None:
    """Print the options of a command, with the values of a config, and the presets of its config groups."""
    console = Console()
    console.print(f"{command} KEY=VALUE ...   (-m for a sweep, --cfg job for the composed config)\n", markup=False)
    for title, keys in _sections(schema):
        rows = {f"{key}={_shown(OmegaConf.select(config, key))}": meaning for key, meaning in keys.items()}
        _print(console, title, rows)
    for group in (*(f.name for f in dataclasses.fields(schema)), *groups):
        if presets := preset_meanings(group):
            _print(console, f"{group}=", presets)


def _print(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold", max_width=60)
    for left, right in rows.items():
        table.add_row(Text(left), Text(right))
    console.print(table, "")


def option_meanings(schema: type) -> dict[str, str]:
    """Return the meaning of each field of a dataclass: the comment behind it, or its entry under ``Args:``."""
    if schema is DCN:
        found = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(inspect.getdoc(DCNConfig) or "")}
        return {f.name: found.get(f.name, "") for f in dataclasses.fields(schema)}
    comments = _comments(inspect.getsource(Data if schema is InspectedData else schema))
    return {f.name: comments.get(f.name, "") for f in dataclasses.fields(schema)}


def preset_meanings(group: str) -> dict[str, str]:
    """Return the presets of a config group, each with the first sentence of its file's header."""
    folder = Path(conf.__file__).parent / group
    return {path.stem: _header(path) for path in sorted(folder.glob("*.yaml"))}


def _sections(schema: type) -> list[tuple[str, dict[str, str]]]:
    """Return the meanings of all options by config group, those of the command itself first."""
    meanings = option_meanings(schema)
    fields: list[Any] = [f for f in dataclasses.fields(schema) if dataclasses.is_dataclass(f.type)]
    groups = {f.name: f.type for f in fields}
    own = {name: meaning for name, meaning in meanings.items() if name not in groups}
    inner = {
        f"{name}.": {f"{name}.{key}": meaning for key, meaning in option_meanings(group).items()}
        for name, group in groups.items()
    }
    return [("options", own), *inner.items()]


def _shown(value: Any) -> str:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _comments(source: str) -> dict[str, str]:
    """Return the comments behind the fields of a class, by the field's name."""
    found: dict[str, str] = {}
    name = None
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
        elif token.type == tokenize.COMMENT and name and token.start[1] > 4:
            found[name] = token.string.lstrip("# ")
            name = None
    return found


def _header(path: Path) -> str:
    """Return the first comment of a config file, up to its first command."""
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("# ") or line.startswith("#   "):
            break
        lines.append(line[2:])
    return " ".join(lines).rstrip(":")
