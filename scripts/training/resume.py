"""Choose the run to resume."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.schema import Train
from ..storage.files import atomically
from . import state

_log = logging.getLogger(__name__)
NAME = "config.json"
# These may differ in a resumed run, because they don't change what is trained.
_FREE = {
    "resume",
    "report",
    "push_to",
    "dry_run",
    "device",
    "checkpoint_minutes",
    "checkpoint_every",
    "data.workers",
}


def describe(config: Train) -> dict[str, Any]:
    """Return the settings that determine what a run trains, flat: ``{"optim.lr": 0.003, ...}``."""
    flat: dict[str, Any] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{path}{key}.", inner)
        elif path[:-1] not in _FREE:
            flat[path[:-1]] = value

    add("", json.loads(json.dumps(asdict(config))))
    return flat


def record(config: Train, folder: Path) -> None:
    """Write the settings that ``choose`` compares."""
    text = json.dumps(describe(config), indent=2) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    atomically(folder / NAME, write)


def choose(config: Train, folder: Path, runs: list[Path]) -> Path:
    """Return the folder to train in: ``folder``, or the folder of the run that ``config.resume`` means.

    Args:
        config: No ``resume`` means a new run. "auto" means the newest of ``runs`` with the same config, or a new
            run if there is none. Otherwise resume is the folder of a run. Its config may differ; the differences
            are logged.
        folder: Folder of a new run.
        runs: Folders of other runs.

    Raises:
        FileNotFoundError: If ``config.resume`` is not the folder of a run.
        ValueError: If that run's config is damaged; or if the folder of a new run holds another one.
    """
    wanted = describe(config)
    if config.resume is None:
        _check_new(folder, wanted)
        return folder
    if config.resume == "auto":
        same = [run for run in runs if _same(run, wanted) and list(run.glob(f"*/{state.NAME}"))]
        if not same:
            _check_new(folder, wanted)
            _log.info("resume=auto: no run with this config in %s, so this is a new one", folder.parent)
            return folder
        return max(same, key=lambda run: max(path.stat().st_mtime for path in run.glob(f"*/{state.NAME}")))
    run = Path(str(config.resume))
    before = _read(run)
    if before is None:
        raise FileNotFoundError(f"expected 'auto' or the folder of a run, with {NAME}, got resume={config.resume}")
    for change in _changes(before, wanted):
        _log.warning("resume=%s: %s", run, change)
    return run


def _changes(before: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [
        f"{key} was {before.get(key)} and is {wanted.get(key)}"
        for key in sorted(wanted | before)
        if wanted.get(key) != before.get(key)
    ]


def _check_new(folder: Path, wanted: dict[str, Any]) -> None:
    """Raise a ValueError if a folder holds the weights or the state of a run, which a new one would replace."""
    if not any(any(folder.glob(f"*/{name}")) for name in (state.NAME, "last.safetensors")):
        return
    changes = _changes(_read(folder) or {}, wanted)
    goes_on = f"set resume={folder if changes else 'auto'} to go on with it"
    differs = f" (its {'; '.join(changes[:3])}{'; ...' if changes[3:] else ''})" if changes else ""
    raise ValueError(f"{folder} holds a run{differs}: {goes_on}, take another hydra.run.dir, or delete the folder")


def _same(run: Path, wanted: dict[str, Any]) -> bool:
    try:
        return _read(run) == wanted
    except ValueError as error:  # another run's damaged config must not stop this run
        _log.warning("resume=auto skips a run: %s", error)
        return False


def _read(run: Path) -> dict[str, Any] | None:
    path = run / NAME
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no config of dcn-train: {str(found)[:100]}")
    return found
