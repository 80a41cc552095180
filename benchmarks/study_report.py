"""The table and the picture of the study."""

from pathlib import Path


def write(results: Path) -> None:
    print("todo")
