"""dcn-export: a network in the file of each runtime, verified there before it gets its name."""

import logging
import sys
from pathlib import Path
from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from scripts.benchmark.show import provenance
from scripts.config import Export, check_overrides, register
from scripts.deploy import report
from scripts.deploy.report import Row
from scripts.deploy.session import Session
from scripts.deploy.targets import DYNAMIC, TARGETS

_log = logging.getLogger(__name__)


def run(config: Export) -> list[Row]:
    """Export to every target that the config asks for; write and print the report.

    Raises:
        ValueError: For an unknown target, dtype or kind of dynamic sizes, or what the network's source refuses.
        FileNotFoundError: For a checkpoint or a folder of images that is not there.
    """
    names = _targets(config.target)
    if config.dynamic not in DYNAMIC:
        raise ValueError(f"expected dynamic to be one of {', '.join(DYNAMIC)}, got {config.dynamic!r}")
    if config.batch < 1:
        raise ValueError(f"expected at least one image to a batch, got {config.batch=}")
    session, folder, console = Session(config), Path(config.folder), Console(width=160)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [session.eager()]
    try:
        for name in names:
            console.print(f"{name} ...")
            rows.append(_attempt(session, name, folder))
    finally:  # an interruption costs what was not finished
        title = session.title()
        report.show(rows, title, console)
        path = folder / f"{session.source.name}.json"
        report.save(rows, {**provenance("dcn-export"), "title": title, "config": vars(config)}, path)
        console.print(f"written: {path}")
    if config.markdown:
        report.write_matrix(rows, title, Path(config.markdown), config.block)
    return rows


def _targets(target: str | list[str]) -> list[str]:
    names = list(TARGETS) if target == "all" else [target] if isinstance(target, str) else list(target)
    if not names or set(names) - set(TARGETS):
        raise ValueError(f"expected target=all, one of {', '.join(TARGETS)}, or a list of them, got {target!r}")
    return names


def _attempt(session: Session, name: str, folder: Path) -> Row:
    try:
        return session.export(name, folder)
    except Exception as error:  # whatever stops one target must not cost the others
        _log.debug("%s failed", name, exc_info=True)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        _log.error("%s failed: %s: %s", name, type(error).__name__, "\n".join(lines[:20]))
        return Row(name, reason=f"{type(error).__name__}: {lines[0]}")


@hydra.main(version_base="1.3", config_path="pkg://conf.deploy", config_name="export")
def _main(config: DictConfig) -> None:
    try:
        rows = run(cast(Export, OmegaConf.to_object(config)))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; files that have their name are whole and verified")
    if failed := [row.target for row in rows if row.reason is not None]:
        sys.exit(f"error: no file for {', '.join(failed)}; files of earlier runs, if any, are as they were")


def main() -> None:
    """Entry point of the console command."""
    register()
    check_overrides(Export)
    _main()


if __name__ == "__main__":
    main()
