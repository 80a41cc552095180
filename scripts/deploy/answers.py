"""What a network answers: scores of images or pixels, or objects; how it is exported, and compared with eager."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..networks.detectors import DETECTORS
from . import objects
from .detectors import OneStage, TwoStage
from .verify import Agreement, Objects, Outputs, Result, VerificationError, agreement

ONE_STAGE = ("fcos", "retinanet")


class Answers(Protocol):
    """The answers of a network to some batches, by eager; the outputs of its files are compared with them."""

    kind: str  # "scores", "one-stage" or "two-stage"
    same: str  # title of the share of the same answers
    classes: int
    names: tuple[str, ...]  # of the outputs of a file
    settings: dict[str, Any] | None  # of a detector, for ``detections.find``

    def exported(self, model: nn.Module) -> nn.Module:
        """Return a network as it is exported."""

    def compare(self, result: Result) -> Agreement:
        """Compare a file's outputs with eager's.

        Raises:
            VerificationError: If it has other shapes or objects.
        """


def of(model: Any, head: str | None, batches: list[Tensor], tolerance: float) -> Answers:
    """Return the answers of a network to batches [N, C, H, W].

    Args:
        model: In eval mode.
        head: The name of a detector or segmenter; None for a classifier.
        batches: Preprocessed images.
        tolerance: For matching objects.

    Raises:
        ValueError: If the network doesn't take the images, scores are not finite, or a detector finds nothing.
    """
    shapes = " and ".join(sorted({str(list(batch.shape)) for batch in batches}))
    detector = head in DETECTORS
    with torch.inference_mode():
        try:
            found: Any = [objects.of_eager(model, batch) if detector else model(batch) for batch in batches]
        except Exception as error:  # a network may raise anything
            raise ValueError(
                f"the network doesn't take images of {shapes}: {' '.join(str(error).split())[:300]}; set size=..."
            ) from error
        if detector:
            return Detections(model, str(head), batches, found, tolerance)
    return Scores(found, pixels=head is not None)


class Scores:
    """Scores of a classifier [N, classes], or of a segmenter [N, classes, H, W]."""

    kind = "scores"
    names: tuple[str, ...] = ("scores",)
    settings: dict[str, Any] | None = None

    def __init__(self, scores: list[Tensor], pixels: bool) -> None:
        if not all(bool(of_batch.isfinite().all()) for of_batch in scores):
            raise ValueError("the network's own scores are not finite: nothing can be verified against them")
        self.scores, self.classes = [*scores, scores[0]], scores[0].shape[1]  # the first input runs again, last
        self.same, self.what = ("pixels", "pixels") if pixels else ("top-1", "images")

    def exported(self, model: nn.Module) -> nn.Module:
        """Return it as it is."""
        return model

    def compare(self, result: Result) -> Agreement:
        """Compare the scores."""
        return agreement([out[0] for out in result.outputs], self.scores, f"{self.what} keep their class")


class Detections:
    """Objects: eager's are those of torchvision's own post-processing, an export's those of ``detections.find``.

    Raises:
        ValueError: If nothing is found in all images.
    """

    same = "objects"
    settings: dict[str, Any] | None

    def __init__(
        self, model: Any, head: str, batches: list[Tensor], found: list[Objects], tolerance: float
    ) -> None:
        self.classes, self.tolerance = model.num_classes, tolerance
        self.kind = "one-stage" if head in ONE_STAGE else "two-stage"
        batches, self.objects = [*batches, batches[0]], [*found, found[0]]  # the first input runs again, last
        owner = model if self.kind == "one-stage" else model.roi_heads
        self.least, self.most = owner.score_thresh, owner.detections_per_img
        if not any(len(one["scores"]) for images in self.objects for one in images):
            raise ValueError(
                f"the network finds no object in the images, above its score_thresh of {self.least}: nothing can "
                "be verified; set images= to a folder of images like those of its training"
            )
        self.sides = [max(batch.shape[2:]) for batch in batches]
        network: Any = self.exported(model)
        self.names = network.outputs
        self.outputs: list[Outputs] = [network(batch) for batch in batches] if self.kind == "one-stage" else []
        self.settings = {}
        if self.kind == "one-stage":
            keys = ("score_thresh", "nms_thresh", "topk_candidates", "detections_per_img")
            self.settings = {key: getattr(model, key) for key in keys}

    def exported(self, model: nn.Module) -> nn.Module:
        """Return the network with tensors as outputs."""
        return (OneStage if self.kind == "one-stage" else TwoStage)(model).eval()

    def compare(self, result: Result) -> Agreement:
        """Compare the objects, and of a one-stage detector all candidates."""
        error = 0.0
        if self.kind == "one-stage":
            pairs = zip(result.outputs, self.outputs, self.sides, strict=True)
            error = max(_difference(*pair) for pair in pairs)
        matches = objects.Matches(self.tolerance, self.least, self.most)
        for found, expected, side in zip(result.objects, self.objects, self.sides, strict=True):
            matches.add(found, expected, side)
        matches.check()
        error = max(error, matches.error)
        unit = "of the image's longer side, or of a score of 1"
        return Agreement(error, error, matches.share, "objects are found", unit, matches.count)


def _difference(outputs: Outputs, expected: Outputs, side: int) -> float:
    """Return the largest difference of candidates: of boxes relative to the image's longer side, and of scores."""
    for output, target in zip(outputs, expected, strict=True):
        if output.shape != target.shape:
            raise VerificationError(f"expected outputs of shape {list(target.shape)}, got {list(output.shape)}")
    (boxes, scores, levels), (their_boxes, their_scores, their_levels) = outputs, expected
    if not torch.equal(levels, their_levels):
        raise VerificationError("the levels of the candidates are not eager's")
    return max(float((boxes - their_boxes).abs().max()) / side, float((scores - their_scores).abs().max()))
