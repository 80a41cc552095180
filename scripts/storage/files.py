"""Files that are complete or absent, and folders in which only one run at a time writes."""

import errno
import json
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)
# The errors of file systems that have no fsync.
_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}
_LOCK, _HOLDER, _TEMPORARY = ".lock", ".lock.json", ".tmp"
_OURS = re.compile(rf".+\.(safetensors|pt|json|csv|png)\.[0-9a-f]{{8}}{re.escape(_TEMPORARY)}")
PATIENCE = 10.0  # seconds; the workers of a killed run hold its lock until they notice


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file with the output of ``write``, once it is on the disk; until then the old file stays.

    Raises:
        Exception: The exception of ``write``, with a note that names the file.
    """
    # A unique name: another process that writes the same file must not write, rename or delete this temporary file.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors creates files that only their owner may read
        _sync(temporary)
        temporary.replace(path)
    except Exception as error:
        error.add_note(f"while writing {path}; the previous file is intact")
        raise
    finally:
        temporary.unlink(missing_ok=True)
    # So that the name survives a power failure. Not every system can open or sync a folder.
    with suppress(OSError):
        _fsync(path.parent, os.O_RDONLY)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, so that it leaves all files of the block or none."""
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True

    ours = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # Ctrl-C is ignored
        yield
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _sync(path: Path) -> None:
    try:
        _fsync(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs; the system releases it when this process ends, in any way.

    Temporary files of a killed run are deleted.

    Raises:
        ValueError: If another run has locked the folder; the message names the run.
    """
    lock, holder = FileLock(folder / _LOCK, timeout=PATIENCE), folder / _HOLDER
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is in use by {_read(holder)}; wait for that run, end it, or take another folder"
        ) from None
    except (NotImplementedError, OSError) as error:
        _log.warning("%s can't be locked (%s): start no other run in it", folder, error)
    try:
        started = datetime.now().isoformat(timespec="seconds")
        holder.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": started}))
        for left in (*folder.glob(f"*{_TEMPORARY}"), *folder.glob(f"*/*{_TEMPORARY}")):
            if _OURS.fullmatch(left.name):  # the folder may contain the user's files
                left.unlink(missing_ok=True)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        run = json.loads(holder.read_text())
        return f"process {run['process']} on {run['host']} since {run['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # between taking the lock and writing the name
        return "another run"
