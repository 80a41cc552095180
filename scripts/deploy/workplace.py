"""A hidden folder for files until they are verified, in the same folder as their final place."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = ".dcn-export-"


@contextmanager
def workplace(folder: Path) -> Iterator[list[Path]]:
    """Yield two empty folders, for network and plain, on the file system of ``folder``: naming is a rename.

    Leftovers of killed runs in ``folder`` are removed.
    """
    for left in folder.glob(f"{_PREFIX}*"):
        _remove_if_left(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary, _lock(Path(temporary)):
        places = [Path(temporary) / place for place in ("network", "plain")]
        for place in places:
            place.mkdir()
        yield places


def publish(place: Path, main: str, folder: Path) -> None:
    """Move the files of ``place`` into ``folder``.

    ``main`` names the file that is loaded, and that finds the others by name. The old one is removed first and the
    new one is moved last: after an interruption it never belongs to another export than the files next to it.
    """
    others = [path for path in sorted(place.iterdir()) if path.name != main]
    if others:
        (folder / main).unlink(missing_ok=True)
    for path in (*others, place / main):
        path.replace(folder / path.name)


def _lock(place: Path) -> FileLock:
    return FileLock(place / "lock", blocking=False)  # the system releases it when the process ends, in any way


def _remove_if_left(place: Path) -> None:
    try:
        with _lock(place):
            shutil.rmtree(place, ignore_errors=True)
    except (Timeout, OSError):  # it belongs to a running run, or was removed meanwhile
        return
