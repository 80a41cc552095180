"""Generated parts of Markdown files, between ``<!-- block -->`` and ``<!-- /block -->``."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_block(path: Path, block: str, content: str) -> None:
    """Write ``content`` between the marks of a block.

    Raises:
        FileNotFoundError: As in ``around_block``.
        PermissionError: As in ``around_block``.
        ValueError: As in ``around_block``.
    """
    head, tail = around_block(path, block)
    path.write_text(f"{head}\n{content}\n{tail}")


def around_block(path: Path, block: str) -> tuple[str, str]:
    """Return the text before and after the content of a block, with the marks.

    Raises:
        FileNotFoundError: If the file doesn't exist.
        PermissionError: If the file can't be written to.
        ValueError: If the file doesn't have these marks.
    """
    start, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    if not path.is_file():
        raise FileNotFoundError(f"expected a Markdown file with the lines {start!r} and {end!r}, got {path}")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"can't write to {path}; make it writable, or name another Markdown file")
    text = path.read_text()
    head, _, rest = text.partition(start)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"expected the lines {start!r} and {end!r} in {path}")
    return head + start, end + tail


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
