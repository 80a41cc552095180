"""Boundary IoU, F1 of instances and confusions, held against scipy, pycocotools and counts by hand."""

import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from zoo.scripts.tasks import boundaries
from zoo.scripts.tasks.detection import Found
from zoo.scripts.tasks.matching import Matches, overlaps_of
from zoo.scripts.tasks.segmentation import Overlaps


def blobs(*shape: int, classes: int, seed: int) -> torch.Tensor:
    """Return smooth random regions [N, H, W] of some classes."""
    noise = np.random.default_rng(seed).normal(size=(shape[0], classes, *shape[1:]))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 4, 4))
    return torch.from_numpy(smooth.argmax(1))


def contour(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return what erosions remove, as the authors' code: scipy's border is background."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance)


@pytest.mark.parametrize("distance", [1, 3, 7])
def test_a_boundary_is_what_erosions_remove(distance: int) -> None:
    masks = blobs(3, 41, 60, classes=2, seed=distance) == 1
    expected = np.stack([contour(mask.numpy(), distance) for mask in masks])
    assert 0 < expected.sum() < masks.sum()
    np.testing.assert_array_equal(boundaries.boundary(masks, distance).numpy(), expected)


def test_boundary_iou_is_that_of_eroded_masks() -> None:
    """The width is 2 % of the diagonal; the sums are over all images, as those of IoU."""
    targets, other = (blobs(2, 60, 80, classes=3, seed=seed) for seed in (0, 1))
    answers = torch.where(torch.arange(80) < 40, targets, other)
    evaluation = Overlaps(("a", "b", "c", "never"), torch.device("cpu"))
    for i in range(2):
        scores = torch.nn.functional.one_hot(answers[i : i + 1], 4).movedim(-1, 1).float()
        evaluation.update(scores, targets[i : i + 1])
    found = evaluation.compute()
    expected = []
    for label in range(3):
        pairs = [[contour((m == label).numpy(), 2) for m in (a, t)] for a, t in zip(answers, targets, strict=True)]
        both = sum((a & t).sum() for a, t in pairs)
        expected.append(100 * both / sum((a | t).sum() for a, t in pairs))
    assert [found[f"boundary/IoU/{name}"] for name in "abc"] == pytest.approx(expected, abs=1e-4)
    assert found["boundary/mIoU"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert math.isnan(found["boundary/IoU/never"])


def test_what_is_answered_where_no_class_is_known_changes_no_boundary() -> None:
    targets = blobs(1, 60, 80, classes=2, seed=0)
    targets[:, 20:40, 30:60] = 255
    found = []
    for fill in (0, 1):
        answers = torch.where(targets == 255, fill, targets)
        found.append(boundaries.counts(answers, targets, 2))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0][:, 0], found[0][:, 1])  # all right


def test_pixels_are_counted_by_class_and_answer() -> None:
    evaluation = Overlaps(("a", "b"), torch.device("cpu"))
    answers, targets = torch.tensor([[[0, 1, 1, 0]]]), torch.tensor([[[0, 0, 1, 255]]])
    evaluation.update(torch.nn.functional.one_hot(answers, 2).movedim(-1, 1).float(), targets)
    confusion = evaluation.confusion()
    assert confusion.names == ("a", "b")
    assert confusion.counts.tolist() == [[1, 1], [0, 1]]


def random_scene(generator: torch.Generator, outputs: int, objects: int) -> tuple[dict, dict]:
    """Return outputs near to objects and far from them, sorted by score, with classes that are often right."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    corner, size = 150 * uniform(objects, 2), 10 + 30 * uniform(objects, 2)
    truth = {
        "boxes": torch.cat([corner, corner + size], 1),
        "labels": torch.randint(3, (objects,), generator=generator),
        "ignored": uniform(objects) < 0.2,
    }
    chosen = torch.randint(objects, (outputs,), generator=generator)
    boxes = truth["boxes"][chosen] + 6 * uniform(outputs, 4) - 3
    labels = torch.where(uniform(outputs) < 0.8, truth["labels"][chosen], 2)
    return {"boxes": boxes, "labels": labels, "scores": uniform(outputs).sort(descending=True).values}, truth


def masks_of(boxes: torch.Tensor) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    return (x >= x1) & (x < x2) & (y >= y1) & (y < y2)


def by_coco(scenes: list[tuple[dict, dict]], threshold: float) -> tuple[int, int, int]:
    """Return true and false positives and the objects, by pycocotools' evaluation of boxes."""

    def entry(image: int, box: torch.Tensor, label: int, **rest: object) -> dict:
        x1, y1, x2, y2 = box.double().tolist()
        bbox = [x1, y1, x2 - x1, y2 - y1]
        return {"image_id": image, "category_id": label, "bbox": bbox, "area": bbox[2] * bbox[3], **rest}

    truth, found = [], []
    for image, (output, target) in enumerate(scenes):
        rows = zip(target["boxes"], target["labels"].tolist(), target["ignored"].tolist(), strict=True)
        truth += [entry(image, box, label, iscrowd=int(crowd)) for box, label, crowd in rows]
        rows = zip(output["boxes"], output["labels"].tolist(), output["scores"].tolist(), strict=True)
        found += [entry(image, box, label, score=score) for box, label, score in rows]
    dataset = COCO()
    dataset.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(scenes))],
        "categories": [{"id": i} for i in range(3)],
        "annotations": [{**one, "id": i + 1} for i, one in enumerate(truth)],
    }
    dataset.createIndex()
    evaluation = COCOeval(dataset, dataset.loadRes(found), "bbox")
    evaluation.params.iouThrs = np.array([threshold])
    evaluation.evaluate()
    whole = [one for one in evaluation.evalImgs if one and one["aRng"] == evaluation.params.areaRng[0]]
    matched = [(one["dtMatches"][0] > 0) & ~one["dtIgnore"][0].astype(bool) for one in whole]
    wrong = [(one["dtMatches"][0] == 0) & ~one["dtIgnore"][0].astype(bool) for one in whole]
    return (
        int(sum(one.sum() for one in matched)),
        int(sum(one.sum() for one in wrong)),
        int(sum((np.asarray(one["gtIgnore"]) == 0).sum() for one in whole)),
    )


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_matches_are_those_of_cocos_evaluation(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = [random_scene(generator, outputs=20, objects=9) for _ in range(20)]
    matches = Matches(3, threshold)
    for output, target in scenes:
        matches.add(overlaps_of(output, target, "bbox"), output["labels"], target["labels"], target["ignored"])
    right, wrong, objects = by_coco(scenes, threshold)
    assert 50 < right < objects
    assert wrong > 50
    counts = matches.counts
    assert counts[:3, :3].trace() == right
    assert counts[:, :3].sum() == right + wrong
    assert counts[:3].sum() == objects
    assert matches.f1() == pytest.approx(2 * right / (right + wrong + objects))


def test_masks_overlap_as_their_boxes_where_they_fill_them() -> None:
    output, target = random_scene(torch.Generator().manual_seed(3), outputs=5, objects=4)
    for one in (output, target):
        one["boxes"] = one["boxes"].round().clamp(0, 200)
        one["masks"] = masks_of(one["boxes"])
    boxes, masks = (overlaps_of(output, target, kind) for kind in ("bbox", "segm"))
    assert boxes.max() > 0.5
    np.testing.assert_allclose(masks, boxes)


def test_confused_objects_are_in_their_cell_and_others_in_the_background() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]),
        "labels": torch.tensor([0, 0, 1, 0]),
        "ignored": torch.tensor([False, False, False, True]),
    }
    output = {
        # A right one, a second for it, one of the wrong class, on an ignored object, too far, too faint.
        "boxes": torch.tensor(
            [[0.0, 0, 10, 9], [0, 0, 10, 8], [20, 0, 30, 10], [60, 0, 70, 10], [46, 0, 56, 10], [40, 0, 50, 10]]
        ),
        "labels": torch.tensor([0, 0, 1, 0, 1, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.1]),
    }
    found = Found(("cat", "dog"), masks=False, score=0.3)
    found.update([output], [target])
    confusion = found.confusion()
    assert confusion.names == ("cat", "dog", "background")
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert found.compute()["F1@50"] == pytest.approx(100 * 2 / (2 + 3 + 2), abs=1e-4)


def test_an_output_on_an_ignored_object_of_its_class_is_no_confusion_with_another() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    target = {"boxes": boxes.repeat(2, 1), "labels": torch.tensor([0, 1]), "ignored": torch.tensor([True, False])}
    matches = Matches(2, 0.5)
    output = {"boxes": boxes, "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    matches.add(overlaps_of(output, target, "bbox"), output["labels"], target["labels"], target["ignored"])
    assert matches.counts.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_f1_of_nothing_is_no_number() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    found = Found(("cat",), masks=False, score=0.3)
    found.update([{**nothing, "scores": torch.zeros(0)}], [{**nothing, "ignored": torch.zeros(0).bool()}])
    assert math.isnan(found.compute()["F1@50"])
