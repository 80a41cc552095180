"""dcn-export: write a network's file for each runtime; a file gets its final name once it is verified there."""

import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from dcn_ops.interop.portable import SAMPLING

from ..config.ranges import check_least
from ..config.schema import Export
from ..storage import markdown
from ..storage.provenance import provenance
from . import report
from .progress import stage
from .report import Row
from .session import Session
from .targets import DYNAMIC, TARGETS
from .workplace import workplace

_log = logging.getLogger(__name__)


def run(config: Export) -> list[Row]:
    """Export to every target of the config, and print the table of all.

    Raises:
        ValueError: If a target, dtype or kind of dynamic sizes is unknown, a number is out of range, a folder can't
            be written to or has the export of another network, or the network's source is refused.
        FileNotFoundError: If a checkpoint, a folder of images or a Markdown file doesn't exist.
        PermissionError: If the Markdown file can't be written to.
    """
    names = _targets(config.target)
    _check(config)
    folder, console = Path(config.folder), Console(width=160)
    _check_writable(folder)
    if config.markdown:
        markdown.around_block(Path(config.markdown), config.block)
    with stage("building the network"):
        session = Session(config)
    left_out = _left_out(session, names) if config.target == "all" else []
    names = [name for name in names if name not in {row.target for row in left_out}]
    _check_replaced(config, [folder / session.files(name, [folder])[0].name for name in names])
    title = session.title()
    about = {**provenance("dcn-export"), "title": title, "config": vars(config)}
    rows = [session.eager()]
    try:
        for name in names:
            rows.append(_attempt(session, name, folder, rows[0], about))
        rows += left_out
    finally:  # an interruption loses only unfinished targets
        report.show(rows, title, console)
        for row in rows:
            if row.file:
                print(f"written: {row.file}, with its report {row.file}.json")
    if config.markdown:
        report.write_matrix(rows, title, Path(config.markdown), config.block)
    return rows


def _check(config: Export) -> None:
    if config.dynamic not in DYNAMIC:
        raise ValueError(f"expected dynamic to be one of {', '.join(DYNAMIC)}, got {config.dynamic!r}")
    if config.sampling not in SAMPLING:
        raise ValueError(f"expected sampling to be one of {', '.join(SAMPLING)}, got {config.sampling!r}")
    if config.sampling != SAMPLING[0] and not config.decompose:
        raise ValueError(f"sampling={config.sampling} applies only to decomposed files: set decompose=true")
    check_least(config, dict.fromkeys(("batch", "rounds", "max_images", "threads"), 1))
    if not config.limit_minutes > 0:
        raise ValueError(f"expected limit_minutes above 0, got limit_minutes={config.limit_minutes}")


def _check_writable(folder: Path) -> None:
    """Raise ValueError before the export if its result could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with workplace(folder):
            pass
    except OSError as error:
        raise ValueError(f"can't write into folder={folder}: {error.strerror}; name another folder") from error


def _left_out(session: Session, names: list[str]) -> list[Row]:
    """Return the targets that can't have what the config asks for, or lack a package, with the reasons."""
    rows = []
    for name in names:
        try:
            session.check(name)
        except (ValueError, ImportError) as error:
            _log.info("%s: left out: %s", name, error)
            rows.append(Row(name, reason=str(error), left_out=True))
    return rows


def _check_replaced(config: Export, files: list[Path]) -> None:
    """Raise ValueError if a file is the export of another checkpoint or network, as its report says."""
    for file in files:
        try:
            of = json.loads(Path(f"{file}.json").read_text())["config"]
            other = Export(checkpoint=of["checkpoint"], model=of["model"])
        except (OSError, ValueError, KeyError, TypeError):  # no report, or none of ours
            continue
        if _source(other) != _source(config):
            key, value = ("checkpoint", other.checkpoint) if other.checkpoint else ("model", other.model)
            raise ValueError(f"{file} is the export of {key}={value}: set folder=OTHER, or remove the file")


def _source(config: Export) -> tuple[Path | None, str | None]:
    return Path(config.checkpoint).resolve() if config.checkpoint else None, config.model


def _targets(target: str | list[str]) -> list[str]:
    names = list(TARGETS) if target == "all" else [target] if isinstance(target, str) else list(target)
    if not names or set(names) - set(TARGETS):
        raise ValueError(f"expected target=all, one of {', '.join(TARGETS)}, or a list of them, got {target!r}")
    return names


def _attempt(session: Session, name: str, folder: Path, eager: Row, about: dict[str, Any]) -> Row:
    try:
        return session.export(name, folder, eager, about)
    except Exception as error:  # an error of one target must not stop the others
        _log.debug("%s failed", name, exc_info=True)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        _log.error("%s failed: %s: %s", name, type(error).__name__, "\n".join(lines[:20]))
        return Row(name, reason=f"{type(error).__name__}: {lines[0]}")
