"""Objects of a detector in eager, and whether an export finds the same."""

from typing import Any

import torch
from torch import Tensor

from .verify import Objects, VerificationError


def of_eager(model: Any, images: Tensor) -> Objects:
    """Return what torchvision's detector finds in images [N, C, H, W]: boxes, scores, labels from 0 on.

    Of Mask R-CNN also ``masks`` [n, M, M], as they are before torchvision pastes them into the image.
    """
    small: list[Tensor] = []
    pasted = getattr(model, "roi_heads", None)
    hook = pasted and pasted.register_forward_hook(
        lambda _module, _inputs, out: small.extend(one["masks"][:, 0] for one in out[0] if "masks" in one)
    )
    try:
        found = model(images)
    finally:
        if hook:
            hook.remove()
    return [
        {name: one[name] for name in ("boxes", "scores", "labels")} | ({"masks": small[i]} if small else {})
        for i, one in enumerate(found)
    ]


class Matches:
    """Pairs of an export's objects with eager's: of one class, at one place, with one score.

    An object may be missing on one side if its score is within the tolerance of the limit: ``least``, or the
    score of the last of ``most`` objects.

    Args:
        tolerance: For scores and masks; for boxes relative to the image's longer side.
        least: Objects have larger scores.
        most: Objects of an image.
    """

    def __init__(self, tolerance: float, least: float, most: int) -> None:
        self.tolerance, self.least, self.most = tolerance, least, most
        self.error, self.count, self.pairs = 0.0, 0, 0
        self.missing: list[str] = []

    @property
    def share(self) -> float:
        """Share of eager's objects that the export finds."""
        return self.pairs / self.count if self.count else 1.0

    def add(self, found: Objects, expected: Objects, side: int) -> None:
        """Match the objects of a batch of images with this longer side."""
        if len(found) != len(expected):
            raise VerificationError(f"expected the objects of {len(expected)} images, got those of {len(found)}")
        for mine, theirs in zip(found, expected, strict=True):
            self._match(mine, theirs, side)

    def _match(self, found: dict[str, Tensor], expected: dict[str, Tensor], side: int) -> None:
        self.count += len(expected["scores"])
        differences = _differences(found, expected, side)  # [expected, found]
        left = set(range(len(found["scores"])))
        cut = self._cut(found, expected)
        for i in range(len(expected["scores"])):
            best = min(left, key=lambda j: float(differences[i, j]), default=None)
            if best is not None and differences[i, best] <= self.tolerance:
                left.remove(best)
                self.pairs += 1
                self.error = max(self.error, float(differences[i, best]))
            elif expected["scores"][i] > cut + self.tolerance:
                self.missing.append(f"eager's {_text(expected, i)} is not found")
        extra = [j for j in left if found["scores"][j] > cut + self.tolerance]
        self.missing += [f"{_text(found, j)} is not found by eager" for j in extra]

    def _cut(self, *sides: dict[str, Tensor]) -> float:
        """Return the score above which an object has to be on both sides."""
        full = [float(side["scores"].min()) for side in sides if len(side["scores"]) >= self.most]
        return max([self.least, *full])

    def check(self) -> None:
        """Raise VerificationError if an object has no pair."""
        if self.missing:
            some = "; ".join(self.missing[:3])
            raise VerificationError(
                f"{len(self.missing)} objects differ from eager's {self.count} by more than {self.tolerance:.0e} "
                f"of the image's side or of the score: {some}; allow more with tolerance=..."
            )


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor], side: int) -> Tensor:
    """Return the largest difference of each pair [expected, found], infinite between classes."""
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(-1) / side
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    largest = torch.maximum(boxes, scores)
    if "masks" in expected:
        masks = expected["masks"].flatten(1)[:, None] - found["masks"].flatten(1)
        largest = torch.maximum(largest, masks.abs().amax(-1))
    return largest.masked_fill(expected["labels"][:, None] != found["labels"], float("inf"))


def _text(objects: dict[str, Tensor], i: int) -> str:
    box = ", ".join(f"{value:.1f}" for value in objects["boxes"][i].tolist())
    return f"object of class {int(objects['labels'][i])} with score {float(objects['scores'][i]):.3f} at ({box})"
