"""torchvision's detectors on a timm backbone. Images come normalised and of one size; classes count from 0."""

import difflib
import inspect
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from .backbone import Pyramid

Targets = list[dict[str, Tensor]]
DETECTORS = ("fcos", "retinanet", "faster_rcnn", "mask_rcnn")
_CLASS = {"fcos": FCOS, "retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
# Arguments that a recipe sets otherwise, or that are no numbers.
_OURS = {
    *("self", "kwargs", "backbone", "num_classes", "min_size", "max_size", "image_mean", "image_std"),
    *("anchor_generator", "head", "proposal_matcher", "rpn_anchor_generator", "rpn_head"),
    *("box_roi_pool", "box_head", "box_predictor", "mask_roi_pool", "mask_head", "mask_predictor"),
}
# The layers whose shape depends on the classes.
CLASSIFIERS = {
    "fcos": ("head.classification_head.cls_logits",),
    "retinanet": ("head.classification_head.cls_logits",),
    "faster_rcnn": ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
}
CLASSIFIERS["mask_rcnn"] = (*CLASSIFIERS["faster_rcnn"], "roi_heads.mask_predictor.mask_fcn_logits")


def create(name: str, body: Any, num_classes: int, channels: int, kwargs: dict[str, Any]) -> nn.Module:
    """Build a detector.

    Args:
        name: One of ``DETECTORS``.
        body: A network of ``timm.create_model(..., features_only=True)``.
        num_classes: Number of the classes, without background.
        channels: Channels of the pyramid and the head, a multiple of 32.
        kwargs: Further arguments of torchvision's class, such as ``detections_per_img``.

    Raises:
        ValueError: If the channels don't fit, or the network lacks a map.
    """
    if channels < 32 or channels % 32:
        raise ValueError(
            f"the norms of the head have 32 groups: expected head.channels=64, 128 or 256, got {channels}"
        )
    _check_arguments(_CLASS[name], kwargs)
    one_stage = name in ("fcos", "retinanet")
    top = LastLevelP6P7(channels, channels) if one_stage else LastLevelMaxPool()
    pyramid = Pyramid(body, (8, 16, 32) if one_stage else (4, 8, 16, 32), channels, top)
    model: Any = _CREATE[name](pyramid, num_classes, kwargs)
    model.transform = AsTheyAre(1, 1, [0.0], [1.0])
    return model


def _check_arguments(detector: Any, kwargs: dict[str, Any]) -> None:
    """Refuse what torchvision would pass on to its resizing, which ignores it."""
    known = [key for key in inspect.signature(detector.__init__).parameters if key not in _OURS]
    for key in kwargs:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.4) or known
            raise ValueError(f"{detector.__name__} has no argument {key}; close names: {', '.join(close)}")


def without_limit(model: Any, score: float) -> int:
    """Let a detector find all objects from a score on, and return the number that it was limited to."""
    chooser = getattr(model, "roi_heads", model)
    below = torch.nextafter(torch.tensor(score), torch.tensor(-1.0)).item()  # torchvision keeps what is above it
    chooser.score_thresh = max(chooser.score_thresh, below)
    limit: int = chooser.detections_per_img
    chooser.detections_per_img = sys.maxsize
    return limit


class AsTheyAre(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's batching without its resizing: the data set makes images of one size."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return both unchanged."""
        return image, target


def _fcos(pyramid: Pyramid, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    head = SharedFCOSHead(pyramid.out_channels, 1, num_classes)
    return FCOS(pyramid, num_classes, head=head, **{"score_thresh": 0.05, **kwargs})


def _retinanet(pyramid: Pyramid, num_classes: int, kwargs: dict[str, Any]) -> nn.Module:
    # Three sizes in an octave, as in the paper and in torchvision's own builder.
    sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(
        pyramid.out_channels, anchors.num_anchors_per_location()[0], num_classes,
        norm_layer=partial(nn.GroupNorm, 32),
    )  # fmt: skip
    return RetinaNet(pyramid, num_classes, anchor_generator=anchors, head=head, **kwargs)


class SharedFCOSHead(FCOSHead):  # type: ignore[misc]
    """FCOS' head, whose losses are means over the positive locations of all processes.

    torchvision's are means over those of a process. Averaged over processes, they would weigh the locations of a
    process with few of them more.
    """

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the three losses."""
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if not torch.distributed.is_initialized():
            return losses
        mine = (torch.stack(matched_idxs) >= 0).sum().float()
        together = mine.clone()
        torch.distributed.all_reduce(together)
        share = torch.distributed.get_world_size() * mine.clamp(min=1) / together.clamp(min=1)
        return {name: loss * share for name, loss in losses.items()}


class _CountsFromZero(nn.Module):
    """R-CNN's class 0 is the background; outside of the network classes count from 0, as in the other detectors."""

    def forward(self, images: Tensor, targets: Targets | None = None) -> Any:
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        found = super().forward(images, targets)
        return found if self.training else [{**one, "labels": one["labels"] - 1} for one in found]


class ZeroFasterRCNN(_CountsFromZero, FasterRCNN):  # type: ignore[misc]
    """Faster R-CNN whose classes count from 0."""


class ZeroMaskRCNN(_CountsFromZero, MaskRCNN):  # type: ignore[misc]
    """Mask R-CNN whose classes count from 0."""


_CREATE: dict[str, Any] = {
    "fcos": _fcos,
    "retinanet": _retinanet,
    "faster_rcnn": lambda pyramid, classes, kwargs: ZeroFasterRCNN(pyramid, classes + 1, **kwargs),
    "mask_rcnn": lambda pyramid, classes, kwargs: ZeroMaskRCNN(pyramid, classes + 1, **kwargs),
}
