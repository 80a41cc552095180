"""Settings beside the arguments: one frozen object, and the key of the compile caches that contains it.

``set_implementation`` and ``set_workspace_limit`` choose for the whole process, ``settings(...)`` for a ``with``
block of this thread.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from dcn_ops.torch_internals.caches import digest_of, tag_caches, tag_caches_of_thread, tagged_caches

IMPLEMENTATIONS = ("auto", "composition", "native", "triton")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings, with their defaults.

    Raises:
        ValueError: For an unknown implementation or a negative workspace limit.
        TypeError: For a workspace limit that is not an integer.
    """

    implementation: str = "auto"
    autotune: bool = False
    workspace_limit: int = 64 * 2**20  # bytes
    whole_operators: bool = False

    def __post_init__(self) -> None:
        if self.implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"expected an implementation among {', '.join(IMPLEMENTATIONS)}, got name={self.implementation!r}"
            )
        size = self.workspace_limit
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"expected a whole number of bytes, got {size=}; write an int, such as 16 * 2**20")
        if size < 0:
            raise ValueError(f"expected a number of bytes, got {size=}")


_DEFAULT = Settings()
_of_process, _changing = _DEFAULT, Lock()
_of_thread: ContextVar[dict[str, Any]] = ContextVar("dcn_ops_settings", default={})  # noqa: B039  (never changed)


def current() -> Settings:
    """Return the settings of this thread."""
    changes = _of_thread.get()
    return replace(_of_process, **changes) if changes else _of_process


def changes() -> dict[str, Any]:
    """Return what the ``with`` blocks of this thread have changed."""
    return _of_thread.get()


@contextmanager
def settings(**changes: Any) -> Iterator[None]:
    """Change settings of this thread within a ``with`` block; what is compiled in it keeps them.

    ``with dcn_ops.settings(implementation="composition", workspace_limit=2**24): ...``

    Args:
        **changes: ``implementation`` and ``autotune``, as of ``set_implementation``; ``workspace_limit``, as of
            ``set_workspace_limit``; ``whole_operators``, as ``whole_operators()``.

    Raises:
        TypeError: For another name, or a workspace limit that is not an integer.
        ValueError: For an unknown implementation or a negative workspace limit.
    """
    names = [field.name for field in fields(Settings)]
    unknown = sorted(changes.keys() - names)
    if unknown:
        raise TypeError(f"expected settings among {', '.join(names)}, got {', '.join(unknown)}")
    try:
        with restored(_of_thread.get() | changes), tagged_caches(_tag(current())):
            yield
    finally:  # a setting for the process that was made in the block stays
        tag_caches_of_thread(_tag(current()))


@contextmanager
def restored(changes: dict[str, Any]) -> Iterator[None]:
    """Use the ``changes`` of another thread, or of an earlier time, in this thread."""
    replace(_of_process, **changes)  # raises for wrong values before anything changes
    token = _of_thread.set(changes)
    try:
        yield
    finally:
        _of_thread.reset(token)


def implementation() -> str:
    """Return the implementation that is set; ``"auto"`` at first."""
    return current().implementation


def set_implementation(name: str, *, autotune: bool = False) -> None:
    """Set the implementation for all later calls, and for code that is compiled later.

    Args:
        name: ``"auto"``: for float32, float16 and bfloat16, Triton kernels on GPUs and a native kernel on CPUs,
            which a C++ compiler of the machine builds once; else a composition of ATen kernels. ``"composition"``:
            only the composition. ``"triton"`` or ``"native"``: only these kernels, and ValueError if they can't
            run. Under ``torch.use_deterministic_algorithms(True)`` the gradient of the input of grouped
            convolutions on GPUs comes from the composition, because the kernels add it up in an order that changes.
        autotune: Time several tiles of the Triton kernels, on the first call with new numbers of channels, filters
            and taps, instead of using those of a table. This takes seconds each time. Triton's disk cache keeps the
            results.

    Raises:
        ValueError: For another name.
    """
    _set(implementation=name, autotune=autotune)


def workspace_limit() -> int:
    """Return the bytes that a call may use beyond a plain convolution; 64 MiB at first."""
    return current().workspace_limit


def set_workspace_limit(size: int) -> None:
    """Limit the memory of a call to about ``size`` bytes, beyond that of the images that its pieces read.

    Less than 32 MiB costs time, because of many small pieces. Code that is compiled already keeps its limit. On a
    GPU the default is an upper limit: a backward of small tensors takes less. A higher one is taken as it is.

    Raises:
        ValueError: For a negative size.
        TypeError: For a size that is not an integer.
    """
    _set(workspace_limit=size)


def _set(**changes: Any) -> None:
    global _of_process
    with _changing:
        _of_process = replace(_of_process, **changes)
        tag_caches(_tag(_of_process))
    tag_caches_of_thread(_tag(current()))


def tag_compile_caches() -> None:
    """Add the package's sources and the settings to the key of the compile caches.

    Those caches know the operator by its name. Without the tag, a process with another version of the kernels or
    with other settings would get code from an earlier compilation.
    """
    _set()


def _tag(settings: Settings) -> str:
    chosen = [f"{f.name}={value}" for f in fields(settings) if (value := getattr(settings, f.name)) != f.default]
    # If there may be a native kernel, the compiler does not see into the operator.
    native = [] if os.environ.get("DCN_OPS_NATIVE") != "0" else ["native=off"]
    return ",".join([_sources(), *native, *chosen])


@cache
def _sources() -> str:
    return digest_of(Path(__file__).parent)
