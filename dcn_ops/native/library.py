"""The library of the native kernel: found or built with the first call that could take it, checked, loaded once."""

import logging
import os
from pathlib import Path
from threading import Lock

from dcn_ops.native.build import UnavailableError, built, find_compiler, is_whole, library_path
from dcn_ops.native.check import check
from dcn_ops.native.interface import Library

_log = logging.getLogger(__name__)
_lock = Lock()
_found: Library | str | None = None


def library() -> Library | str:
    """Return the library, or why there is none; the first call may build it, which takes seconds."""
    global _found
    if _found is None:
        with _lock:  # others wait for who builds
            if _found is None:
                _found = _find()
    return _found


def _find() -> Library | str:
    if os.environ.get("DCN_OPS_NATIVE") == "0":
        return "it is switched off by the variable DCN_OPS_NATIVE"
    try:
        return _load_or_build()
    except UnavailableError as error:
        _log.warning(
            "no native kernel, without which deformable convolutions on the CPU take up to ten times as long: %s; "
            "DCN_OPS_NATIVE=0 does without it, and without this message",
            error,
        )
        return str(error)


def _load_or_build() -> Library:
    compiler = find_compiler()
    path = library_path(compiler)
    if is_whole(path):
        try:
            return _load(path)
        except UnavailableError as error:
            _log.info("the native kernel is built again: %s", error)
    with built(compiler, path) as candidate:
        return _load(candidate)


def _load(path: Path) -> Library:
    loaded = Library(str(path))
    check(loaded)
    return loaded
