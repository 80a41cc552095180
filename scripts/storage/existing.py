"""Files that the user names: whether they exist, and which similar ones do."""

import difflib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

_SHOWN = 5
_ALIKE = 0.6  # of difflib's ratio, as in its own ``get_close_matches``


def existing(path: str, missing: str | None = None, suffixes: tuple[str, ...] = (".safetensors",)) -> Path:
    """Return the path of a file.

    Args:
        path: As the user wrote it.
        missing: What to say if it doesn't exist; default: that there is no such checkpoint.
        suffixes: Of the files that may be meant.

    Raises:
        FileNotFoundError: If it doesn't exist; the message names the files that share most of its folders, of
            these the most similar ones, under runs/ and near the path.
    """
    if Path(path).is_file():
        return Path(path)
    there = {str(file) for file in (*_runs(suffixes), *_beside(Path(path), suffixes))}
    near = sorted(there, key=lambda file: (-_shared(path, file), -_likeness(path, file), file))[:_SHOWN]
    said = missing or f"no checkpoint {path!r}"
    if near and _likeness(path, near[0]) >= _ALIKE:
        others = f" There are also: {', '.join(near[1:])}" if near[1:] else ""
        raise FileNotFoundError(f"{said}; did you mean {near[0]}?{others}")
    raise FileNotFoundError(f"{said}; there are: {', '.join(near) or 'none under runs/'}")


def _shared(one: str, other: str) -> int:
    """Return how many folders two paths have in common, from the first on."""
    pairs = zip(Path(one).parts, Path(other).parts, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _runs(suffixes: tuple[str, ...]) -> Iterator[Path]:
    return (file for suffix in suffixes for file in Path("runs").glob(f"**/*{suffix}"))


def _beside(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files in the deepest folder of the path that exists, and in the folders there."""
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return (file for suffix in suffixes for at in ("*", "*/*") for file in folder.glob(f"{at}{suffix}"))
