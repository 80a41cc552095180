"""Where files are written until they are verified: a hidden folder beside the place that they will have."""

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

    What killed runs left behind in ``folder`` is removed.
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

    ``main`` names the file that is loaded, and that finds the others by name. An old one is removed first and the
    new one comes last: whatever happens in between, it never stands beside files of another export.
    """
    others = [path for path in sorted(place.iterdir()) if path.name != main]
    if others:
        (folder / main).unlink(missing_ok=True)
    for path in (*others, place / main):
        path.replace(folder / path.name)


def _lock(place: Path) -> FileLock:
    return FileLock(
        place / "lock", blocking=False
    )  # the system releases it when the process ends, however that does


def _remove_if_left(place: Path) -> None:
    try:
        with _lock(place):
            shutil.rmtree(place, ignore_errors=True)
    except (Timeout, OSError):  # of a run that goes on, or removed meanwhile
        return
