"""Pascal VOC's folders: JPEGImages, Annotations, ImageSets/Main/<split>.txt."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from ..folders import SUFFIXES, natural
from .scene import Scene, Split, Thing


def read(root: Path, split: str, key: str, classes: Sequence[str] | None) -> Split:
    """Return a split.

    Args:
        root: The folder that holds ``Annotations``.
        split: Name of a list in ``ImageSets/Main``.
        key: The config's key for the split, for error messages.
        classes: Names of the classes; None for those that occur, in natural order.

    Raises:
        FileNotFoundError: If a folder or the list doesn't exist.
    """
    lists = root / "ImageSets" / "Main"
    path = lists / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "nothing"
        raise FileNotFoundError(f"expected the list {path}; set {key} to one of the lists there: {there}")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    problems: list[str] = []
    found = {name: _parse(root / "Annotations" / f"{name}.xml", problems) for name in names}
    if len(found) < len(names):
        problems += [f"{path}: {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    every = {thing[0] for _, things in found.values() for thing in things}
    known = tuple(classes or sorted(every, key=natural))
    problems += [
        f"{root / 'Annotations' / name}.xml: the class '{label}' is none of {', '.join(known)}; see data.classes"
        for name, (_, things) in found.items()
        for label in sorted({thing[0] for thing in things} - set(known))
    ]
    scenes = [
        Scene(
            image=_image(root / "JPEGImages", name),
            size=size,
            source=root / "Annotations" / f"{name}.xml",
            things=tuple(
                Thing(known.index(label), box, ignored) for label, box, ignored in things if label in known
            ),
        )
        for name, (size, things) in found.items()
        if size != (0, 0)  # its annotation is a problem
    ]
    return Split(scenes, known, problems)


_Object = tuple[str, tuple[float, float, float, float], bool]


def _parse(path: Path, problems: list[str]) -> tuple[tuple[int, int], list[_Object]]:
    """Return the size of the image, and its objects."""
    try:
        root = ElementTree.parse(path).getroot()
        size = int(_text(root, "size/height")), int(_text(root, "size/width"))
        return size, [_object(element) for element in root.findall("object")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        problems.append(f"{path}: {error}")
        return (0, 0), []


def _object(element: ElementTree.Element) -> _Object:
    x1, y1, x2, y2 = (float(_text(element, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    # VOC's pixels count from 1, and the last one belongs to the box.
    box = (max(x1 - 1, 0.0) if x1 >= 0 else x1, max(y1 - 1, 0.0) if y1 >= 0 else y1, x2, y2)
    return _text(element, "name"), box, element.findtext("difficult", "0").strip() == "1"


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if not text or not text.strip():
        raise ValueError(f"expected a value of <{path.replace('/', '><')}> in <{element.tag}>, got none")
    return text.strip()


def _image(folder: Path, name: str) -> Path:
    return next(
        (path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), folder / f"{name}.jpg"
    )
