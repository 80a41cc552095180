"""The table, the JSON file, and the table in a Markdown file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..storage import markdown


@dataclass
class Row:
    """One target; a failed target has a reason and no file."""

    target: str
    file: str | None = None
    bytes: int | None = None
    error: float | None = None  # largest absolute difference from eager in float32
    relative: float | None = None  # the same relative to the largest score
    top1: float | None = None  # share of images or pixels with eager's class, or of eager's objects that are found
    objects: int | None = None  # that eager finds
    accuracy: tuple[float, float] | None = None  # eager's and the export's, if the images have classes
    labelled: int = 0  # images with a class
    ms: float | None = None  # median, for a batch
    plain_ms: float | None = None  # the plain network's, timed alternately
    first_s: float | None = None  # from loading to the first result
    export_s: float | None = None
    dynamic: str = ""
    library: bool = False  # whether the process imported dcn_ops
    torchvision: bool = False  # whether the process imported torchvision
    same: str = "top-1"  # title of top1
    reason: str | None = None
    left_out: bool = False  # by target=all, for the reason

    @property
    def ratio(self) -> float | None:
        """Time relative to the plain network's."""
        return self.ms / self.plain_ms if self.ms and self.plain_ms else None


_COLUMNS = ("target", "works", "max error", "top-1", "ms", "x plain", "first s", "MB", "dynamic", "needs dcn_ops")


def _columns(rows: list[Row]) -> list[str]:
    return [rows[0].same if name == "top-1" else name for name in _COLUMNS]


def _cells(row: Row) -> list[str]:
    if row.reason is not None:
        return [row.target, f"{'left out' if row.left_out else 'no'}: {row.reason}", *[""] * (len(_COLUMNS) - 2)]
    top1 = "" if row.top1 is None else f"{100 * row.top1:.0f} %"
    if row.objects is not None:
        top1 += f" of {row.objects}"
    if row.accuracy is not None:
        before, after = (f"{100 * share:.1f}" for share in row.accuracy)
        top1 += f" as eager (accuracy {before} → {after} % of {row.labelled} images)"
    return [
        row.target,
        "yes",
        "" if row.error is None else f"{row.error:.1e}",
        top1,
        "" if row.ms is None else f"{row.ms:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.first_s is None else f"{row.first_s:.1f}",
        "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        row.dynamic,
        ("yes" if row.library else "no") + (", and torchvision" if row.torchvision else ""),
    ]


def show(rows: list[Row], title: str, console: Console) -> None:
    """Print the table."""
    caption = "x plain: ms over the plain network's. first s: seconds from loading to the first result"
    table = Table(*_columns(rows), title=title, caption=caption)
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    console.print(table)


def save(rows: list[Row], about: dict[str, Any], path: Path) -> None:
    """Write the JSON."""
    values = [{**asdict(row), "ratio": row.ratio} for row in rows]
    path.write_text(json.dumps({**about, "rows": values}, indent=1) + "\n")


def write_matrix(rows: list[Row], title: str, path: Path, block: str) -> None:
    """Write the table between ``<!-- block -->`` and ``<!-- /block -->`` of a Markdown file.

    Raises:
        ValueError: If the file doesn't have these marks.
    """
    cells = [_cells(row) for row in rows]
    markdown.replace_block(path, block, f"{title}\n\n{markdown.table(_columns(rows), cells)}")
