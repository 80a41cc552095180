"""Generated parts of Markdown files: what stands between ``<!-- block -->`` and ``<!-- /block -->``."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def replace_block(path: Path, block: str, content: str) -> None:
    """Put ``content`` between the marks of a block.

    Raises:
        ValueError: For a file without these marks.
    """
    text = path.read_text()
    start, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    if start not in text or end not in text:
        raise ValueError(f"expected the lines {start!r} and {end!r} in {path}")
    head, _, rest = text.partition(start)
    tail = rest.partition(end)[2]
    path.write_text(f"{head}{start}\n{content}\n{end}{tail}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
