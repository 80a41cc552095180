"""torchvision's detectors as exporters take them: one tensor of images in, tensors of fixed rank out.

One-stage detectors end with all their candidates, and ``detections.py`` chooses among them. Two-stage detectors
choose twice inside: regions need a non-maximum suppression (NMS) before the second stage. Its number of boxes
depends on the image; here every result is filled up to its largest number, so only NMS has an unknown size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image, nms, roi_align

Size = tuple[int, int]  # height, width


class Anchors(nn.Module):
    """torchvision's anchors, whose cells are buffers: Inductor doesn't pack graphs with other constants.

    Args:
        generator: An ``AnchorGenerator``.
    """

    def __init__(self, generator: Any) -> None:
        super().__init__()
        for level, cell in enumerate(generator.cell_anchors):
            self.register_buffer(f"cell{level}", cell.float())  # [anchors of a location, 4]

    def forward(self, images: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the anchors [A, 4] of the maps of images, and the level of each [A]."""
        anchors, levels = [], []
        for level, features in enumerate(maps):
            (height, width), cell = features.shape[2:], self.get_buffer(f"cell{level}")
            y = torch.arange(height, device=cell.device) * (images.shape[2] // height)
            x = torch.arange(width, device=cell.device) * (images.shape[3] // width)
            y, x = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))
            here = (torch.stack((x, y, x, y), 1)[:, None] + cell).reshape(-1, 4)
            anchors.append(here)
            levels.append(torch.full_like(here[:, 0], level, dtype=torch.int64))
        return torch.cat(anchors), torch.cat(levels)


class OneStage(nn.Module):
    """FCOS or RetinaNet, up to its candidates: one for each anchor of each level.

    Returns ``boxes`` [N, A, 4] (x1, y1, x2, y2) in pixels of the input, clipped to it; ``scores`` [N, A, classes]
    in 0 to 1; and ``levels`` [A], int64.
    """

    outputs = ("boxes", "scores", "levels")

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.anchors = model, Anchors(model.anchor_generator)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates of images [N, C, H, W]."""
        maps = list(self.model.backbone(images).values())
        found = self.model.head(maps)
        anchors, levels = self.anchors(images, maps)
        boxes = self._decoded(found["bbox_regression"], anchors)
        scores = found["cls_logits"].sigmoid()  # [N, A, classes]
        if "bbox_ctrness" in found:
            scores = (scores * found["bbox_ctrness"].sigmoid()).sqrt()
        return clip_boxes_to_image(boxes, (images.shape[2], images.shape[3])), scores, levels

    def _decoded(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return [N, A, 4]."""
        whole = anchors.expand_as(deltas)
        coder = self.model.box_coder
        if hasattr(coder, "decode_single"):  # of RetinaNet
            return coder.decode_single(deltas.reshape(-1, 4), whole.reshape(-1, 4)).reshape(deltas.shape)
        return coder.decode(deltas, whole)


class TwoStage(nn.Module):
    """Faster R-CNN or Mask R-CNN, with both choices of boxes.

    Returns ``boxes`` [N, D, 4] (x1, y1, x2, y2) in pixels of the input; ``scores`` [N, D] in falling order, 0 where
    there are fewer objects than D, which is ``detections_per_img``; ``labels`` [N, D], from 0 on, int64; of Mask
    R-CNN also ``masks`` [N, D, M, M], the probabilities inside of each box.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.anchors = model, Anchors(model.rpn.anchor_generator)
        self.with_masks = bool(model.roi_heads.has_mask())
        self.outputs = ("boxes", "scores", "labels") + (("masks",) if self.with_masks else ())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the objects of images [N, C, H, W]; N is a constant of the export."""
        maps = self.model.backbone(images)
        size = (images.shape[2], images.shape[3])
        boxes, logits, counts = self._candidates(images, list(maps.values()))
        found = []
        for index in range(len(images)):
            mine = [level[index : index + 1] for level in maps.values()]
            proposals, there = self._proposals(boxes[index], logits[index], counts, size)
            found.append(self._objects(mine, proposals, there, size))
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _candidates(self, images: Tensor, maps: list[Tensor]) -> tuple[Tensor, Tensor, list[int]]:
        """Return the boxes [N, A, 4] and logits [N, A] of the first stage, and the number of each level."""
        rpn = self.model.rpn
        logits, deltas = rpn.head(maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
        anchors, _ = self.anchors(images, maps)
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        boxes = rpn.box_coder.decode_single(deltas, anchors.repeat(len(images), 1))
        return boxes.reshape(len(images), -1, 4), logits.reshape(len(images), -1), counts

    def _proposals(self, boxes: Tensor, logits: Tensor, counts: list[int], size: Size) -> tuple[Tensor, Tensor]:
        """Return the boxes [P, 4] that the second stage looks at, and which of them [P] are there."""
        rpn, picked, levels = self.model.rpn, [], []
        for level, part in enumerate(logits.split(counts)):
            best = part.topk(min(rpn.pre_nms_top_n(), counts[level])).indices
            picked.append(best + sum(counts[:level]))
            levels.append(torch.full_like(best, level))
        chosen = torch.cat(picked)
        boxes, scores = clip_boxes_to_image(boxes[chosen], size), logits[chosen].sigmoid()
        keep = _suppressed(
            boxes, scores, torch.cat(levels), size, (scores >= rpn.score_thresh) & _large(boxes, rpn.min_size),
            rpn.nms_thresh,
        )  # fmt: skip
        count = min(rpn.post_nms_top_n(), len(chosen))
        return _filled(boxes[keep], count), _filled(torch.ones_like(keep), count) > 0

    def _objects(self, maps: list[Tensor], proposals: Tensor, there: Tensor, size: Size) -> tuple[Tensor, ...]:
        heads = self.model.roi_heads
        features = heads.box_head(_pooled(heads.box_roi_pool, maps, proposals, size))
        logits, deltas = heads.box_predictor(features)
        classes = logits.shape[1]
        boxes = heads.box_coder.decode_single(deltas, proposals).reshape(-1, classes, 4)[:, 1:]  # 0 is background
        boxes = clip_boxes_to_image(boxes, size).reshape(-1, 4)
        scores = (logits.softmax(-1)[:, 1:] * there[:, None]).reshape(-1)
        labels = torch.arange(classes - 1, device=logits.device).repeat(len(proposals))
        keep = _suppressed(
            boxes, scores, labels, size, (scores > heads.score_thresh) & _large(boxes, 1e-2), heads.nms_thresh
        )
        boxes, scores, labels = (_filled(x[keep], heads.detections_per_img) for x in (boxes, scores, labels))
        found = (boxes, scores, labels)
        return (*found, self._masks(maps, boxes, labels, size)) if self.with_masks else found

    def _masks(self, maps: list[Tensor], boxes: Tensor, labels: Tensor, size: Size) -> Tensor:
        """Return probabilities [D, M, M]."""
        heads = self.model.roi_heads
        logits = heads.mask_predictor(heads.mask_head(_pooled(heads.mask_roi_pool, maps, boxes, size)))
        index = (labels + 1)[:, None, None, None].expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index)[:, 0].sigmoid()


def _large(boxes: Tensor, least: float) -> Tensor:
    """Return which boxes [A, 4] are at least so wide and high."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)


def _suppressed(boxes: Tensor, scores: Tensor, kinds: Tensor, size: Size, able: Tensor, limit: float) -> Tensor:
    """Return the numbers of the able boxes that NMS keeps, best first; boxes suppress those of their kind."""
    chosen = torch.where(able)[0]
    # Boxes of another kind lie beside the image.
    apart = boxes + (kinds * (max(size) + 1)).to(boxes.dtype)[:, None]
    return chosen[nms(apart[chosen], scores[chosen], limit)]


def _filled(values: Tensor, count: int) -> Tensor:
    """Cut or fill with zeros to ``count`` rows."""
    return torch.cat((values, values.new_zeros(count, *values.shape[1:])))[:count]


def _pooled(pool: Any, maps: list[Tensor], boxes: Tensor, size: Size) -> Tensor:
    """Pool each box [P, 4] from the map for its size, as torchvision's ``MultiScaleRoIAlign``; that has run before.

    All maps are pooled, and one is chosen: the number of boxes for each map would be unknown to the exporter.
    """
    scales, levels = pool.scales, _level_of(boxes, pool.map_levels)
    rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), 1)
    found = None
    for level, (features, scale) in enumerate(zip(maps, scales, strict=False)):
        here = roi_align(features, rois, pool.output_size, scale, pool.sampling_ratio)
        found = here if found is None else torch.where((levels == level)[:, None, None, None], here, found)
    assert found is not None
    return found


def _level_of(boxes: Tensor, mapper: Any) -> Tensor:
    """Return the number of the map for each box, as torchvision's ``LevelMapper``: large boxes read coarse maps."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    exact = torch.floor(mapper.lvl0 + torch.log2(sides / mapper.s0) + mapper.eps)
    return exact.clamp(mapper.k_min, mapper.k_max).to(torch.int64) - mapper.k_min
