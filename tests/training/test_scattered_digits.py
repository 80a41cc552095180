"""data=scattered_digits: what is drawn, for which seed, and a run on it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, masks_to_boxes
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Data, Evaluate, InspectedData
from zoo.scripts.data.digits import TRAINED, digits
from zoo.scripts.data.loaders import Splits, create_splits
from zoo.scripts.data.scenes import scattered
from zoo.scripts.inspect import evaluation
from zoo.scripts.training.run import run

TRANSFORM = {"mean": (0.0,), "std": (1.0,), "interpolation": "bilinear", "crop_pct": 1.0}


def data(**changes: object) -> Data:
    chosen = compose_train("task=detection", "data=scattered_digits", "data.batch_size=8").data
    return replace(chosen, **changes)


def splits(seed: int = 0, masks: bool = False, **changes: object) -> Splits:
    return create_splits(data(**changes), TRANSFORM, seed, "masks" if masks else "boxes")


def test_boxes_hold_all_bright_pixels_and_no_border_without_one() -> None:
    images, targets = next(iter(splits(masks=True).train))
    assert images.shape == (8, 1, 96, 96)
    assert sum(len(target["boxes"]) for target in targets) > 20
    for image, target in zip(images[:, 0], targets, strict=True):
        ink = image > 0.25 + 1 / 255  # above the rounding of a pixel to 8 bits
        outside = ink.clone()
        for mask, (x1, y1, x2, y2) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
            outside[y1:y2, x1:x2] = False
            assert (ink[y1:y2, x1:x2] <= mask[y1:y2, x1:x2].bool()).all()
        assert not outside.any()
        torch.testing.assert_close(masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1]), target["boxes"])
        overlaps = box_iou(target["boxes"], target["boxes"])
        assert torch.equal(overlaps > 0, torch.eye(len(overlaps)).bool())


def test_a_digit_that_is_not_distorted_is_the_one_of_its_label() -> None:
    """And evaluation images have only digits that no training shows."""
    pixels, labels = digits()
    cut = {}
    for image, label in zip(pixels[:, 0], labels.tolist(), strict=True):
        x1, y1, x2, y2 = masks_to_boxes((image > 0.25)[None])[0].int().tolist()
        cut[image[y1 : y2 + 1, x1 : x2 + 1].mul(255).round().int().numpy().tobytes()] = label, len(cut)
    still = {"rotation": 0.0, "shear": 0.0, "scale": (1.0, 1.0)}
    found = splits(**still)
    for loader, indices in ((found.train, range(TRAINED)), (found.evaluate, range(TRAINED, 5000))):
        images, targets = next(iter(loader))
        for image, target in zip(images[:, 0], targets, strict=True):
            for (x1, y1, x2, y2), label in zip(
                target["boxes"].int().tolist(), target["labels"].tolist(), strict=True
            ):
                name, index = cut[image[y1:y2, x1:x2].mul(255).round().int().numpy().tobytes()]
                assert (name, index in indices) == (label, True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rotation": 90.0, "shear": 0.0, "scale": (1.0, 1.0)}, lambda image: image.rot90()),
        ({"rotation": 0.0, "shear": 0.0, "scale": (2.0, 2.0)}, None),
        ({"rotation": 0.0, "shear": 45.0, "scale": (1.0, 1.0)}, None),
    ],
)
def test_digits_are_rotated_scaled_and_sheared(
    changes: dict[str, object], expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest draw of each: rot90, twice the size, and each row moved by its distance from the centre."""
    monkeypatch.setattr(scattered.torch, "rand", torch.ones)
    image = digits()[0][0]
    (found,) = scattered._distorted(image[None], data(**changes))
    if expected is not None:
        room = (len(found) - 28) // 2
        torch.testing.assert_close(found, expected(F.pad(image[0], [room] * 4)), atol=1e-4, rtol=0)
    elif changes["shear"]:
        rows = [row for row in range(28) if image[0, row].sum() > 0.5]
        room, columns = (len(found) - 28) // 2, torch.arange(len(found)).float()
        for row in rows:
            moved = (found[row + room] * columns).sum() / found[row + room].sum() - room
            before = (image[0, row] * columns[:28]).sum() / image[0, row].sum()
            assert abs(abs(moved - before) - abs(row - 13.5)) < 0.05
    else:
        x1, y1, x2, y2 = masks_to_boxes(found[None] > 0.5)[0].tolist()
        a1, b1, a2, b2 = masks_to_boxes(image > 0.5)[0].tolist()
        assert x2 - x1 + 1 == pytest.approx(2 * (a2 - a1 + 1), abs=2)
        assert y2 - y1 + 1 == pytest.approx(2 * (b2 - b1 + 1), abs=2)


def test_training_images_are_new_in_each_epoch_and_evaluation_images_never() -> None:
    first, again, other = splits(seed=0), splits(seed=0), splits(seed=1)

    def batch(found: Splits, epoch: int = 0) -> torch.Tensor:
        found.train.batch_sampler.set_epoch(epoch)
        return next(iter(found.train))[0]

    assert torch.equal(batch(first), batch(again))
    assert not torch.equal(batch(first), batch(first, 1))
    assert not torch.equal(batch(first), batch(other))
    assert torch.equal(next(iter(first.evaluate))[0], next(iter(other.evaluate))[0])
    assert (len(first.train), len(first.evaluate)) == (200, 38)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.root=/digits"], r"the digits are drawn, .*; drop data\.root=/digits"),
        (["data.objects=[3,2]"], r"expected at least one digit and one image, got data\.objects=\(3, 2\)"),
        (["data.scale=[0,1]"], r"expected a positive scale .*, got data\.scale=\(0\.0, 1\.0\)"),
        (["data.in_chans=2"], r"expected data\.in_chans=1 or 3, got 2"),
        (
            ["task=segmentation"],
            r"task=segmentation reads data=masks, instances, hf_scenes, got data\.name='scattered_digits'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(compose_train("task=detection", "data=scattered_digits", *overrides), tmp_path)


def test_a_dry_run_counts_what_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["experiment=detect_digits", "data.images=32", "dry_run=true", "device=cpu", "optim.epochs=1"]
    run(compose_train(*arguments), tmp_path)
    shown = capsys.readouterr().out
    assert "scattered_digits: objects in 32 and 300 images" in " ".join(shown.split())
    assert (tmp_path / "augmented.png").stat().st_size > 1000


def test_a_run_on_scattered_digits_is_evaluated_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the latency is not looked at
    recipe = [
        "experiment=detect_digits", "data.images=32", "data.img_size=64", "data.max_batches=2", "optim.epochs=1",
        "optim.warmup_epochs=0", "variants=[dcn]", "report=true", "trackers=[]", "device=cpu",
    ]  # fmt: skip
    (row,) = run(compose_train(*recipe), tmp_path / "run")
    given = data(img_size=None, in_chans=None, max_batches=2, batch_size=16)
    config = Evaluate(
        str(tmp_path / "run" / "dcn" / "last.safetensors"), data=InspectedData(**vars(given)), corruptions=[],
        rounds=1, device="cpu", seed=5,
    )  # fmt: skip
    evaluation.run(config, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["networks"]["dcn"]
    assert found["AP"] == pytest.approx(row.scores["AP"], abs=1e-3)
