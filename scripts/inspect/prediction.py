"""dcn-predict: boxes or masks of a trained network for a folder of images, with pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from ..config.schema import Data, Predict
from ..data.folders import SUFFIXES_READ, images_in
from ..data.scenes.dataset import read_image
from ..data.scenes.transforms import create_transform
from ..storage import checkpoint
from ..tasks.create import of_recipe
from ..tasks.detection import Detection, confident
from ..tasks.segmentation import Segmentation
from .subject import existing

Size = tuple[int, int]  # height, width


def run(config: Predict, folder: Path) -> int:
    """Predict, write and draw.

    Args:
        config: The composed config.
        folder: Receives ``predictions.json`` of a detector or ``masks/`` of a segmenter, and ``pictures/``.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: If the checkpoint or the folder of images doesn't exist.
        ValueError: If the checkpoint is a classifier's, the folder has no image, or an image can't be decoded.
    """
    path = existing(config.checkpoint)
    recipe = checkpoint.read_recipe(path)
    task = of_recipe(recipe)
    if task is None:
        raise ValueError(f"{path} is a classifier; dcn-predict takes detectors and segmenters")
    root = Path(config.images)
    files = images_in(root) if root.is_dir() else []
    if not files:
        raise FileNotFoundError(f"expected a folder of images, got images={config.images} ({SUFFIXES_READ})")
    device = torch.device(
        config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    model = checkpoint.load(path, device)
    found = []
    for file in track(files, description="predicting", transient=True):
        name = Path(file).relative_to(root)
        pixels, answer = _predict(model, Path(file), recipe, device)
        if isinstance(task, Detection):
            answer = confident(answer, config.score)
            found.append({"image": str(name), "objects": _described(answer, task)})
        else:
            _write_mask(answer, folder / "masks" / name.with_suffix(".png"))
        if config.pictures:
            _write_picture(task, pixels, answer, folder / "pictures" / name.with_suffix(".jpg"))
    if isinstance(task, Detection):
        (folder / "predictions.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(files)} images: {folder}")
    return len(files)


@torch.inference_mode()
def _predict(model: nn.Module, file: Path, recipe: dict[str, Any], device: torch.device) -> tuple[Tensor, Any]:
    """Return the pixels [3, H, W] of an image, and the answer in its own pixels: objects, or classes [H, W]."""
    cfg = recipe["pretrained_cfg"]
    channels, side, _ = cfg["input_size"]
    image = read_image(file, "L" if channels == 1 else "RGB")
    data = Data(name="", img_size=side, in_chans=channels)
    batch = create_transform(data, cfg, training=False, boxes=False)(image)[None].to(device)
    output = model(batch)
    size = image.height, image.width
    pixels = functional.pil_to_tensor(image.convert("RGB"))
    if isinstance(output, Tensor):
        return pixels, _unpadded(output.float(), size).argmax(1)[0].cpu()
    answer = {key: value.cpu() for key, value in output[0].items()}
    scale = max(size) / side
    limits = torch.tensor([size[1], size[0], size[1], size[0]])
    answer["boxes"] = torch.minimum((answer["boxes"] * scale).clamp(min=0), limits)
    if "masks" in answer:
        answer["masks"] = _unpadded(answer["masks"], size)
    return pixels, answer


def _unpadded(maps: Tensor, size: Size) -> Tensor:
    """Resize maps [N, C, S, S] of the padded square to the image's pixels, [N, C, H, W]."""
    side = max(size)
    return F.interpolate(maps, (side, side), mode="bilinear")[..., : size[0], : size[1]] if len(maps) else maps


def _described(answer: dict[str, Tensor], task: Detection) -> list[dict[str, Any]]:
    """Return class, score, box (x1, y1, x2, y2) and, of Mask R-CNN, COCO's RLE of each object."""
    described = []
    for i, label in enumerate(answer["labels"].tolist()):
        one = {
            "class": task.classes[label],
            "score": round(answer["scores"][i].item(), 4),
            "box": [round(value, 1) for value in answer["boxes"][i].tolist()],
        }
        described.append(one | ({"mask": _runs(answer["masks"][i])} if "masks" in answer else {}))
    return described


def _runs(mask: Tensor) -> dict[str, Any]:
    from pycocotools.mask import encode

    code = encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def _write_mask(classes: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes.numpy().astype(np.uint8)).save(path)


def _write_picture(task: Detection | Segmentation, pixels: Tensor, answer: Any, path: Path) -> None:
    picture, _ = task.picture(pixels, answer, task.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.movedim(0, -1).numpy()).save(path)
