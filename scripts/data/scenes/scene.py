"""One annotated image, and the checks that every format shares.

Boxes are (x1, y1, x2, y2) in pixels of the image, whose upper left corner is (0, 0).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .source import Source, opened

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    label: int
    box: Box
    ignored: bool = False  # COCO's crowds, VOC's difficult objects: not trained on, and neither right nor wrong
    shape: Any = None  # COCO's polygons or RLE; None without a mask


@dataclass(frozen=True)
class Scene:
    """An image, and what is annotated in it."""

    image: Source
    size: tuple[int, int]  # height, width
    source: Source  # the file of the annotation, for error messages
    things: tuple[Thing, ...] = ()
    label_map: Source | None = None  # an image of class numbers, colours or instance numbers


@dataclass(frozen=True)
class Split:
    """The scenes of a split, and the names of all classes by number."""

    scenes: Sequence[Scene]
    classes: tuple[str, ...]
    problems: list[str] = field(default_factory=list)

    def checked(self) -> "Split":
        """Return the split.

        Raises:
            ValueError: If it is empty, or anything is wrong with a scene; the message names the files.
        """
        wrong = [*self.problems, *(problem for scene in self.scenes for problem in problems_of(scene))]
        twice = [name for name, count in Counter(str(scene.image) for scene in self.scenes).items() if count > 1]
        wrong += [f"{name}: annotated twice" for name in twice]
        if wrong:
            rest = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise ValueError(f"{len(wrong)} annotations to repair or delete:\n  " + "\n  ".join(wrong[:10]) + rest)
        if not self.scenes:
            raise ValueError("the split has no image; see data.root and data.train_split, data.eval_split")
        return self


def problems_of(scene: Scene) -> Iterable[str]:
    """Yield what is wrong with a scene, with the name of the file."""
    try:
        with opened(scene.image) as image:
            found = image.height, image.width
    except FileNotFoundError:
        yield f"{scene.source}: there is no image {scene.image}"
        return
    except Exception as error:  # Pillow may raise anything for a damaged image
        yield f"{scene.image}: {error}"
        return
    if found != scene.size:
        yield f"{scene.source}: is for {_size(scene.size)} pixels, and {scene.image} has {_size(found)}"
    height, width = scene.size
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        if not (x2 > x1 and y2 > y1):
            yield f"{scene.source}: the box {_text(thing.box)} has no area"
        elif not (x1 > -1 and y1 > -1 and x2 < width + 1 and y2 < height + 1):  # a pixel, as tools round
            size = _size(scene.size)
            yield f"{scene.source}: the box {_text(thing.box)} is outside of the image of {size} pixels"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _text(box: Box) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box) + ")"
