"""Which data set a folder looks like, for data= of another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .folders import SUFFIXES

_MAPS = ("instances", "masks")  # beside the folder images
_JSON = ("annotations/*.json", "*.json", "*/_annotations.coco.json")


def guess(root: Path) -> str | None:
    """Return the data= whose layout a folder has; None if it has none of them."""
    if (root / "Annotations").is_dir() or (root / "ImageSets").is_dir():
        return "voc"
    if (root / "images").is_dir():
        found = next((name for name in _MAPS if (root / name).is_dir()), None)
        if found:
            return found
    if any(_is_coco(path) for pattern in _JSON for path in root.glob(pattern)):
        return "coco"
    if any(path.suffix.lower() in SUFFIXES for path in root.glob("*/*/*")):
        return "folder"
    return None


def _is_coco(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    return any(key in start for key in (b'"images"', b'"annotations"', b'"categories"'))


@contextmanager
def advising(root: str | None, name: str) -> Iterator[None]:
    """Say which data= a folder looks like if the block finds no file of this one.

    Raises:
        FileNotFoundError: As the block, or with the advice.
    """
    try:
        yield
    except FileNotFoundError as error:
        if root and Path(root).is_dir() and (advice := _advice(Path(root), name)):
            raise FileNotFoundError(advice) from error
        raise


def _advice(root: Path, name: str) -> str | None:
    """Return what to set if a folder has another layout, or a folder below it has this one."""
    found = guess(root)
    if found == name:
        return None
    below = [path for path in sorted(root.iterdir()) if path.is_dir() and guess(path) == name]
    if below and name != "folder":  # every folder of folders of images looks like classes
        return f"data.root={root} is not laid out as data={name} reads it; set data.root={below[0]}, which is"
    if found is not None:
        return (
            f"data.root={root} is not laid out as data={name} reads it, but as data={found} does; set data={found}"
        )
    return None
