"""Generated parts of Markdown files: what stands between ``<!-- block -->`` and ``<!-- /block -->``."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_block(path: Path, block: str, content: str) -> None:
    """Put ``content`` between the marks of a block.

    Raises:
        FileNotFoundError: As ``around_block``.
        PermissionError: As ``around_block``.
        ValueError: As ``around_block``.
    """
    head, tail = around_block(path, block)
    path.write_text(f"{head}\n{content}\n{tail}")


def around_block(path: Path, block: str) -> tuple[str, str]:
    """Return what stands before and after the content of a block, the marks included.

    Raises:
        FileNotFoundError: Where there is no such file.
        PermissionError: For a file that can't be written to.
        ValueError: For a file without these marks.
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
