"""The files of dcn-predict: labels, boxes or masks of images, in the images' own pixels, and pictures of them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional

from ..tasks.detection import Detection, confident
from ..tasks.drawing import legend
from ..tasks.segmentation import Segmentation

Size = tuple[int, int]  # height, width
MOST = 5  # classes of an image that are written
NAMES = ("predictions.csv", "predictions.json", "masks")  # what a run may write


class Predictions(Protocol):
    """What is predicted, for one image after the other."""

    def add(self, name: Path, image: Image.Image, output: Any) -> Image.Image:
        """Take a network's output for an image, and return a picture of it."""

    def write(self) -> None:
        """Write what is not written yet."""


class Labels:
    """The likeliest classes, with their probabilities: ``predictions.json``; ``.csv`` has the first of each image.

    Args:
        folder: Where the files go.
        names: Of the classes; numbers if there are none.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names
        self.found: list[dict[str, Any]] = []

    def add(self, name: Path, image: Image.Image, output: Tensor) -> Image.Image:
        """Take scores [classes]."""
        scores, labels = output.float().softmax(0).topk(min(MOST, len(output)))
        classes = [
            {"class": self.names[label] if self.names else str(label), "score": round(score, 4)}
            for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
        ]
        self.found.append({"image": str(name), "classes": classes})
        return _titled(image.convert("RGB"), f"{classes[0]['class']} {classes[0]['score']:.2f}")

    def write(self) -> None:
        """Write both files."""
        _write_json(self.found, self.folder)
        rows = [[one["image"], *one["classes"][0].values()] for one in self.found]
        _write_csv(["image", "class", "score"], rows, self.folder)


class Objects:
    """Boxes (x1, y1, x2, y2), of Mask R-CNN also COCO's RLE: ``predictions.json``, and ``.csv`` without masks.

    Args:
        folder: Where the files go.
        task: Of the detector.
        side: Of the square that the detector reads.
        score: Of the boxes that are written, at least.
        limit: So many boxes of an image are written, the best.
    """

    def __init__(self, folder: Path, task: Detection, side: int, score: float, limit: int) -> None:
        self.folder, self.task, self.side, self.score, self.limit = folder, task, side, score, limit
        self.found: list[dict[str, Any]] = []

    def add(self, name: Path, image: Image.Image, output: dict[str, Tensor]) -> Image.Image:
        """Take the objects of an image, best first, in pixels of the padded square."""
        answer = {key: value.cpu() for key, value in output.items()}
        width, height = image.size
        boxes = (answer["boxes"] * (max(width, height) / self.side)).clamp(min=0)
        answer["boxes"] = torch.minimum(boxes, torch.tensor([width, height, width, height]))
        # In the padding nothing is left of a box. It takes no place of an object in the image.
        inside = torch.tensor([x1 < x2 and y1 < y2 for x1, y1, x2, y2 in map(_written, answer["boxes"])])
        answer = {key: value[inside.nonzero()[: self.limit, 0]] for key, value in answer.items()}
        if "masks" in answer:
            answer["masks"] = _unpadded(answer["masks"], (height, width))
        answer = confident(answer, self.score)
        self.found.append({"image": str(name), "objects": self._described(answer)})
        return _drawn(self.task, image, answer)

    def write(self) -> None:
        """Write both files."""
        _write_json(self.found, self.folder)
        rows = [[one["image"], it["class"], it["score"], *it["box"]] for one in self.found for it in one["objects"]]
        _write_csv(["image", "class", "score", "x1", "y1", "x2", "y2"], rows, self.folder)

    def _described(self, answer: dict[str, Tensor]) -> list[dict[str, Any]]:
        described = []
        for i, label in enumerate(answer["labels"].tolist()):
            one = {
                "class": self.task.classes[label],
                "score": round(answer["scores"][i].item(), 4),
                "box": _written(answer["boxes"][i]),
            }
            described.append(one | ({"mask": _runs(answer["masks"][i])} if "masks" in answer else {}))
        return described


class Masks:
    """The number of each pixel's class: ``masks/NAME.png``.

    Args:
        folder: Where the files go.
        task: Of the segmenter.
    """

    def __init__(self, folder: Path, task: Segmentation) -> None:
        self.folder, self.task = folder, task

    def add(self, name: Path, image: Image.Image, output: Tensor) -> Image.Image:
        """Take scores [classes, S, S] of the padded square, and write the mask."""
        classes = _unpadded(output[None].float(), (image.height, image.width)).argmax(1)[0].cpu()
        path = self.folder / "masks" / name.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(classes.numpy().astype(np.uint8)).save(path)
        return _drawn(self.task, image, classes)

    def write(self) -> None:
        """Do nothing: the masks are written."""


def _unpadded(maps: Tensor, size: Size) -> Tensor:
    """Resize maps [N, C, S, S] of the padded square to the image's pixels, [N, C, H, W]."""
    side = max(size)
    return F.interpolate(maps, (side, side), mode="bilinear")[..., : size[0], : size[1]] if len(maps) else maps


def _written(box: Tensor) -> list[float]:
    return [round(value, 1) for value in box.tolist()]


def _runs(mask: Tensor) -> dict[str, Any]:
    from pycocotools.mask import encode

    code = encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def _drawn(task: Detection | Segmentation, image: Image.Image, answer: Any) -> Image.Image:
    picture, _ = task.picture(functional.pil_to_tensor(image.convert("RGB")), answer, task.classes)
    return _with_legend(Image.fromarray(picture.movedim(0, -1).numpy()), legend(task.classes))


def _with_legend(image: Image.Image, names: Sequence[tuple[str, str]]) -> Image.Image:
    """Return the image above the names of the classes, each behind its colour, on as many lines as they need."""
    draw, line, x, y = ImageDraw.Draw(image), 14, 4, image.height + 2
    places = []
    for name, colour in names:
        width = int(draw.textlength(name)) + 26
        if x > 4 and x + width > image.width:
            x, y = 4, y + line
        places.append((x, y, name, colour))
        x += width
    canvas = Image.new("RGB", (image.width, y + line), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for x, y, name, colour in places:
        draw.rectangle((x, y, x + 9, y + 9), fill=colour)
        draw.text((x + 13, y), name, fill="black")
    return canvas


def _titled(image: Image.Image, title: str) -> Image.Image:
    """Return the image above a line of text."""
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((0, 0), title)
    size = max(image.width, int(right - left) + 4), image.height + int(bottom - top) + 6
    canvas = Image.new("RGB", size, "white")
    canvas.paste(image)
    ImageDraw.Draw(canvas).text((2 - left, image.height + 3 - top), title, fill="black")
    return canvas


def _write_json(found: list[dict[str, Any]], folder: Path) -> None:
    (folder / "predictions.json").write_text(json.dumps(found, indent=1) + "\n")


def _write_csv(header: list[str], rows: list[list[Any]], folder: Path) -> None:
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
