"""The key of the compile caches.

Without these names the key doesn't contain this library: empty the caches after an update.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

# torch has a part for users in the key of its compile caches. Ours, "dcn_ops:...;", is at its end.
_OURS = re.compile("dcn_ops:[^;]*;")


def digest_of(package: Path) -> str:
    """Return a hash of the sources of a package."""
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def tag_caches(tag: str) -> None:
    """Put ``tag`` into the key of the compile caches, for every thread."""
    entry = _cache_key_entry()
    # From torch 2.14 on, an assignment to the config is only for this thread.
    for name in ("env_value_default", "default"):
        value = getattr(entry, name, None)
        if isinstance(value, str):
            setattr(entry, name, _tagged(value, tag))
            break
    tag_caches_of_thread(tag)


def tag_caches_of_thread(tag: str) -> None:
    """Put ``tag`` into the key of the compile caches if this thread has its own key."""
    config = torch.compiler.config
    known = getattr(config, "cache_key_tag", None)
    if known is not None and known != (value := _tagged(known, tag)):
        config.cache_key_tag = value


@contextmanager
def tagged_caches(tag: str) -> Iterator[None]:
    """Put ``tag`` into the key of the compile caches of this thread, if torch has a key per thread."""
    config = torch.compiler.config
    if not hasattr(config, "cache_key_tag"):
        yield
        return
    value, of_thread = _tagged(config.cache_key_tag, tag), getattr(_cache_key_entry(), "user_override", None)
    if not isinstance(of_thread, ContextVar):
        with config.patch(cache_key_tag=value):  # type: ignore[attr-defined]
            yield
        return
    token = of_thread.set(value)
    try:
        yield
    finally:
        of_thread.reset(token)


def _cache_key_entry() -> Any:
    return getattr(torch.compiler.config, "_config", {}).get("cache_key_tag")


def _tagged(value: str, tag: str) -> str:
    return f"{_OURS.sub('', value)}dcn_ops:{tag};"
