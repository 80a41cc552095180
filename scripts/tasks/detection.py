"""Object detection: boxes, and masks in them, by the losses of torchvision's detectors."""

import math
from collections.abc import Sequence
from copy import copy
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from ..config.schema import Head
from . import drawing
from .matching import Matches, overlaps_of
from .task import BACKGROUND, Confusion, Metrics, compiled

_SHOWN = {"AP": "map", "AP50": "map_50", "AP75": "map_75"}
_SIZES = {"APs": "map_small", "APm": "map_medium", "APl": "map_large"}
SHOWN_SCORE = 0.3  # of the boxes in pictures
_PREFIX = {"bbox": "", "segm": "mask/"}
_AT = {"F1@50": 0.5, "F1@75": 0.75}  # IoU
_MASK = 0.5  # probability above which a pixel belongs to an object


class Detection:
    """The best epoch has the largest AP: of masks with Mask R-CNN, else of boxes.

    Args:
        head: The detector.
        classes: Names of the classes.
        score: Of the boxes that count for F1 and the confusion, as AP takes all.

    Raises:
        ValueError: If pycocotools, which computes the AP, is not installed.
    """

    def __init__(self, head: Head, classes: Sequence[str], score: float = SHOWN_SCORE) -> None:
        if find_spec("pycocotools") is None:
            raise ValueError('average precision needs pip install "dcn-zoo[detect]": there is no pycocotools')
        self.classes, self.config, self.score = tuple(classes), head, score
        self.masks = head.name == "mask_rcnn"
        self.kind, self.best = ("masks", "mask/AP") if self.masks else ("boxes", "AP")

    def arguments(self) -> dict[str, Any]:
        """Return the number of classes."""
        return {"num_classes": len(self.classes)}

    def head(self) -> dict[str, Any]:
        """Return the detector's recipe."""
        return {"name": self.config.name, "channels": self.config.channels, "kwargs": dict(self.config.kwargs)}

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the detector with its backbone and its dense head compiled.

        Proposals, regions and the choice of boxes stay as they are: their sizes depend on the image.
        """
        parts = {name: part for name, part in model.named_children() if name in ("backbone", "head")}
        detector = copy(model)
        detector._modules = {**model._modules, **{name: compiled(part) for name, part in parts.items()}}
        return detector

    def check(self, output: object, images: int) -> str | None:
        """Expect boxes with labels and scores, for each image."""
        wanted = {"boxes", "labels", "scores"} | ({"masks"} if self.masks else set())
        if isinstance(output, list) and len(output) == images and all(wanted <= set(one) for one in output):
            return None
        return f"a list of {', '.join(sorted(wanted))} for each image, got {type(output).__name__}"

    def prepare(self, images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return both unchanged."""
        return images, targets

    def inputs(self, images: Tensor, targets: list[dict[str, Tensor]]) -> tuple[Any, ...]:
        """Return images and targets: in training mode detectors compute their losses themselves."""
        return images, targets

    def loss(self, output: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """Return the sum of the detector's losses."""
        return torch.stack(list(output.values())).sum()

    def picture(self, image: Tensor, answer: dict[str, Tensor], classes: Sequence[str]) -> tuple[Tensor, str]:
        """Draw boxes and masks, those of an output from a score of ``SHOWN_SCORE`` on."""
        drawn, title = drawing.objects(image, confident(answer), classes)
        return drawn, f"{title} (score ≥ {SHOWN_SCORE:g})" if "scores" in answer else title

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return AP, AP50 and AP75 of boxes, and of masks if there are any."""
        shown = {name: f"{metrics[name]:.1f}" for name in _SHOWN}
        if self.masks:
            shown |= {f"mask {name}": f"{metrics[f'mask/{name}']:.1f}" for name in _SHOWN}
        return shown

    def evaluation(self, device: torch.device) -> "Found":
        """Return empty metrics."""
        return Found(self.classes, self.masks, self.score)


def confident(answer: dict[str, Tensor], score: float = SHOWN_SCORE) -> dict[str, Tensor]:
    """Return the objects of an output from a score on, with masks [N, H, W] of bool; a target unchanged."""
    if "scores" not in answer:
        return answer
    kept = {name: value[answer["scores"] >= score] for name, value in answer.items()}
    return {**kept, "masks": binary(kept["masks"])} if "masks" in kept else kept


def binary(masks: Tensor) -> Tensor:
    """Convert Mask R-CNN's probabilities [N, 1, H, W] to masks [N, H, W] of bool."""
    return masks[:, 0] > _MASK if masks.ndim == 4 else masks.bool()


class Found:
    """Average precision over all scores; F1 and confusion of the objects from one score on.

    Args:
        classes: Names of the classes.
        masks: Whether to also measure masks.
        score: The least score of an output.
    """

    def __init__(self, classes: Sequence[str], masks: bool, score: float) -> None:
        self.precision, self.score, self.classes = AveragePrecision(classes, masks), score, classes
        self.matches = {
            kind: {name: Matches(len(classes), iou) for name, iou in _AT.items()} for kind in self.precision.kinds
        }

    def update(self, output: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add the outputs and targets of some images."""
        self.precision.update(output, targets)
        for one, target in zip(output, targets, strict=True):
            kept, wanted = _on_cpu(confident(one, self.score)), _on_cpu(target)
            order = kept["scores"].argsort(descending=True, stable=True)
            kept = {name: value[order] for name, value in kept.items()}
            for kind, by_threshold in self.matches.items():
                overlaps = overlaps_of(kept, wanted, kind)
                for matches in by_threshold.values():
                    matches.add(overlaps, kept["labels"], wanted["labels"], wanted["ignored"])

    def compute(self) -> Metrics:
        """Return those of ``AveragePrecision``, then ``F1@50`` and ``F1@75``, also of masks."""
        found = self.precision.compute()
        for kind, by_threshold in self.matches.items():
            for name, matches in by_threshold.items():
                share = matches.f1()
                found[_PREFIX[kind] + name] = math.nan if share is None else round(100 * share, 5)
        return found

    def confusion(self) -> Confusion:
        """Return the confusion of the classes at an IoU of 0.5: of masks if there are any, else of boxes."""
        matches = self.matches[self.precision.kinds[-1]]["F1@50"]
        return Confusion((*self.classes, BACKGROUND), matches.counts, f"objects, from a score of {self.score:g} on")


class AveragePrecision:
    """COCO's average precision in percent: overall, by size of the objects, and by class.

    Sizes are those of the network's input: small below 32² pixels, large above 96².

    Args:
        classes: Names of the classes.
        masks: Whether to also measure masks.
    """

    def __init__(self, classes: Sequence[str], masks: bool) -> None:
        self.classes = classes
        self.kinds: tuple[Literal["bbox", "segm"], ...] = ("bbox", "segm") if masks else ("bbox",)
        # Batches already contain those of all processes.
        self._metric = MeanAveragePrecision(
            iou_type=self.kinds, class_metrics=True, sync_on_compute=False, backend="pycocotools"
        )
        self._metric.warn_on_many_detections = False

    def update(self, output: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add the outputs and targets of some images."""
        self._metric.update([_on_cpu(one) for one in output], [_truth(one) for one in targets])

    def compute(self) -> Metrics:
        """Return ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and ``AP/<class>``; NaN without an object.

        Those of masks have ``mask/`` before their names.
        """
        found: Metrics = {}
        values = self._metric.compute()
        for kind in self.kinds:
            prefix, key = _PREFIX[kind], f"{kind}_" if len(self.kinds) > 1 else ""
            for name, of in (_SHOWN | _SIZES).items():
                found[prefix + name] = _percent(values[key + of])
            by_class = dict(
                zip(values["classes"].reshape(-1).tolist(), values[f"{key}map_per_class"].reshape(-1), strict=True)
            )
            for label, name in enumerate(self.classes):
                found[f"{prefix}AP/{name}"] = _percent(by_class[label]) if label in by_class else math.nan
        return found


def _on_cpu(one: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: value.cpu() for name, value in one.items()}
    return {**found, "masks": binary(found["masks"])} if "masks" in found else found


def _truth(one: dict[str, Tensor]) -> dict[str, Tensor]:
    found = _on_cpu(one)
    return {**found, "iscrowd": found["ignored"].to(torch.uint8)}


def _percent(value: Tensor) -> float:
    """Convert torchmetrics' share, which is -1 where there is nothing to find."""
    return math.nan if value.item() < 0 else round(100 * value.item(), 5)
