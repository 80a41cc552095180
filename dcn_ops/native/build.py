"""Build the library of the native kernel by the compiler of this machine, and keep it for later processes."""

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
# NaN and infinity count. Errors of mathematical functions and floating-point exceptions don't, and a product and
# a sum may round once. Hidden symbols are a library's own: gcc would share the constants of inline functions, such
# as tables of functions, with every library of the process that has them too: another version of this one.
_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_OTHER_FOLDER = "set XDG_CACHE_HOME to a folder of yours on another file system"
_DIGEST_SIZE = hashlib.sha256().digest_size


class UnavailableError(Exception):
    """There is no library, for the reason that the message gives, with what would help."""


def find_compiler() -> str:
    """Return the path of a C++ compiler that takes gcc's arguments: ``$CXX``, g++ or clang++.

    Raises:
        UnavailableError: Where there is none.
    """
    if sys.platform == "win32":
        raise UnavailableError("it is not built on Windows")
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise UnavailableError("there is no C++ compiler; install g++ or clang++, or name one by the variable CXX")


def library_path(compiler: str) -> Path:
    """Return where the library lies, or will lie, that this compiler makes of the sources for this machine.

    Raises:
        UnavailableError: Where the folder can't be made or can't be trusted.
    """
    folder = _folder()
    try:
        _check_folder(folder)
        return folder / f"native-{_key(compiler)}.so"
    except OSError as error:
        raise UnavailableError(f"{folder} can't be used ({error}); {_OTHER_FOLDER}") from error


def is_whole(library: Path) -> bool:
    """Tell whether the file is there as it was built: a loader may crash on a truncated one."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return _digest(content[:-_DIGEST_SIZE]) == content[-_DIGEST_SIZE:]


@contextmanager
def built(compiler: str, library: Path) -> Iterator[Path]:
    """Compile the sources; the library gets its name, for later processes, where the ``with`` block has no error.

    Processes may do so at the same time.

    Raises:
        UnavailableError: Where the compiler fails or the folder can't be written.
    """
    _log.info("building the native kernel, once for this machine: %s", library)
    try:
        descriptor, name = tempfile.mkstemp(suffix=".so", prefix=".building-", dir=library.parent)
        os.close(descriptor)
        try:
            _compile(compiler, Path(name))
            yield Path(name)
            os.replace(name, library)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise UnavailableError(f"{library.parent} can't be written ({error}); {_OTHER_FOLDER}") from error


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *_flags(), str(_SOURCES / "native.cpp"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:].strip())
        raise UnavailableError(f"{compiler} failed ({said}); name another compiler by the variable CXX")
    # Behind what a loader reads.
    content = target.read_bytes()
    target.write_bytes(content + _digest(content))


def _flags() -> list[str]:
    own = {"x86_64": "-march=native", "amd64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
    machine = platform.machine().lower()
    return [*_FLAGS, own[machine]] if machine in own else [*_FLAGS]


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "dcn_ops"
    except RuntimeError as error:
        raise UnavailableError(f"there is no home folder ({error}); {_OTHER_FOLDER}") from error


def _check_folder(folder: Path) -> None:
    """Make the folder; whoever else could write into it could have this process run what he likes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnavailableError(f"others may write into {folder}; chmod 700 it, or {_OTHER_FOLDER}")
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise UnavailableError(f"nothing in {folder} may be executed; {_OTHER_FOLDER}")


def _key(compiler: str) -> str:
    """Hash what the library depends on; of the compiler its file, since to ask its version takes longer."""
    path = Path(compiler).resolve()
    status = path.stat()
    machine = (sys.platform, platform.machine(), *platform.libc_ver(), _instruction_set())
    digest = hashlib.sha256(repr((path, status.st_size, status.st_mtime_ns, machine, _flags())).encode())
    for source in sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _instruction_set() -> str:
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
