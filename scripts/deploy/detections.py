"""From the outputs of an exported detector to its objects. This file needs only numpy.

``dcn-export`` copies it beside the exported file. ``find`` takes the outputs by name, and the settings that are the
entry "detections" of the exported file's metadata, and of "metadata" in FILE.json:

    found = find({"boxes": boxes, "scores": scores, "levels": levels}, **settings)

Boxes are (x1, y1, x2, y2) in pixels of the network's input. An image is padded to a square, to the right and below,
and resized to it: times max(height, width) / side they are in pixels of the image.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Objects = dict[str, Array]


def find(outputs: dict[str, Array], **settings: Any) -> list[Objects]:
    """Return the objects of each image.

    Args:
        outputs: Of FCOS and RetinaNet ``boxes`` [N, A, 4], ``scores`` [N, A, classes] and ``levels`` [A]. Faster
            and Mask R-CNN choose their objects themselves: ``boxes`` [N, D, 4], ``scores`` [N, D], ``labels``
            [N, D], and ``masks`` [N, D, M, M] of Mask R-CNN.
        **settings: As of ``choose``.

    Returns:
        For each image ``boxes`` [n, 4], ``scores`` [n] in falling order, ``labels`` [n], and ``masks`` [n, M, M] if
        there are any; ``paste`` makes masks of the image from them.
    """
    if "labels" in outputs:
        names = [name for name in ("boxes", "scores", "labels", "masks") if name in outputs]
        there = outputs["scores"] > 0
        return [{name: outputs[name][i][there[i]] for name in names} for i in range(len(there))]
    pairs = zip(outputs["boxes"], outputs["scores"], strict=True)
    return [choose(boxes, scores, outputs["levels"], **settings) for boxes, scores in pairs]


def choose(
    boxes: Array,
    scores: Array,
    levels: Array,
    *,
    score_thresh: float,
    nms_thresh: float,
    topk_candidates: int,
    detections_per_img: int,
) -> Objects:
    """Choose the objects of one image among its candidates.

    Args:
        boxes: [A, 4].
        scores: [A, classes].
        levels: [A].
        score_thresh: Objects have larger scores.
        nms_thresh: Boxes of a class that overlap a better one by more (IoU) are dropped.
        topk_candidates: At most so many of each level, the best.
        detections_per_img: At most so many objects.
    """
    picked = []
    for level in np.unique(levels):
        mine = np.flatnonzero(levels == level)
        rows, labels = np.nonzero(scores[mine] > score_thresh)
        best = np.argsort(-scores[mine[rows], labels], kind="stable")[:topk_candidates]
        picked.append((mine[rows[best]], labels[best]))
    rows, labels = (np.concatenate(parts) for parts in zip(*picked, strict=True))
    keep = suppress(boxes[rows], scores[rows, labels], labels, nms_thresh)[:detections_per_img]
    rows, labels = rows[keep], labels[keep]
    return {"boxes": boxes[rows], "scores": scores[rows, labels], "labels": labels}


def suppress(boxes: Array, scores: Array, labels: Array, nms_thresh: float) -> Array:
    """Return the numbers of the boxes [n, 4] that overlap no better one of their class, best first."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        again = overlaps(boxes[best], boxes[rest]) > nms_thresh
        order = rest[~(again & (labels[rest] == labels[best]))]
    return np.array(kept, dtype=np.int64)


def overlaps(box: Array, boxes: Array) -> Array:
    """Return the intersection over union (IoU) of a box [4] with boxes [n, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    both = sides.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return both / np.maximum(areas - both, np.finfo(np.float32).tiny)


def paste(masks: Array, boxes: Array, height: int, width: int) -> Array:
    """Return masks [n, M, M], which fill their boxes, as masks [n, height, width] of the image."""
    out = np.zeros((len(masks), height, width), dtype=np.float32)
    side = masks.shape[-1] if len(masks) else 1
    for i, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        # A border of a pixel of the mask, where its values fall to 0.
        center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * ((side + 2) / side)
        x1, y1, x2, y2 = np.concatenate((center - half, center + half)).astype(np.int64).tolist()
        whole = _resized(np.pad(mask, 1), max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        top, left, bottom, right = max(y1, 0), max(x1, 0), min(y2 + 1, height), min(x2 + 1, width)
        if top < bottom and left < right:
            out[i, top:bottom, left:right] = whole[top - y1 : bottom - y1, left - x1 : right - x1]
    return out


def _resized(image: Array, height: int, width: int) -> Array:
    """Resize [H, W] bilinearly; pixels are areas, as in torch with ``align_corners=False``."""
    rows, columns = _mixture(image.shape[0], height), _mixture(image.shape[1], width)
    resized: Array = rows @ image @ columns.T
    return resized


def _mixture(size: int, new: int) -> Array:
    """Return the share [new, size] of each old pixel in each new one."""
    places = ((np.arange(new) + 0.5) * size / new - 0.5).clip(0, size - 1)
    low = np.floor(places).astype(np.int64)
    shares = np.zeros((new, size), dtype=np.float32)
    shares[np.arange(new), np.minimum(low + 1, size - 1)] = places - low
    shares[np.arange(new), low] += 1 - (places - low)
    return shares
