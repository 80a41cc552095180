"""dcn-predict: labels, boxes or masks of a trained network for a folder of images, with pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import track
from timm.data import resolve_data_config
from torch import Tensor

from .. import devices
from ..config.schema import Data, Predict
from ..data import transforms
from ..data.folders import named_images
from ..data.scenes.dataset import read_image
from ..data.scenes.transforms import create_transform
from ..networks import detectors
from ..storage import checkpoint
from ..storage.existing import existing
from ..storage.files import uninterrupted
from ..tasks.create import of_recipe
from ..tasks.detection import Detection
from ..tasks.segmentation import Segmentation
from .predicted import NAMES, Labels, Masks, Objects, Predictions

Task = Detection | Segmentation  # a classifier has none


@torch.inference_mode()
def run(config: Predict, folder: Path) -> int:
    """Predict, write and draw.

    Args:
        config: The composed config.
        folder: Receives ``predictions.json`` and ``predictions.csv`` of a classifier or a detector, ``masks/`` of a
            segmenter, and ``pictures/``.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: If the checkpoint or the folder doesn't exist, or there is no image in it.
        ValueError: If an image can't be decoded, an option is out of range, or the folder has predictions.
    """
    if config.batch_size < 1:
        raise ValueError(f"expected one image or more in a batch, got batch_size={config.batch_size}")
    if there := _written(folder):
        raise ValueError(f"{there[0]} is of another run: set hydra.run.dir=OTHER, or remove {folder}")
    if not 0 <= config.score <= 1:
        raise ValueError(f"expected a score in [0, 1], got score={config.score}")
    device, path = devices.chosen(config.device), existing(config.checkpoint)
    recipe = checkpoint.read_recipe(path)
    root, files = Path(config.images), named_images(config.images)
    model = checkpoint.load(path, device)
    task = of_recipe(recipe)
    predictions, prepared = _predictions(task, model, recipe, config, folder), _preprocessing(task, recipe)
    mode = "L" if recipe["pretrained_cfg"]["input_size"][0] == 1 else "RGB"
    batches = [files[i : i + config.batch_size] for i in range(0, len(files), config.batch_size)]
    for batch in track(batches, description="predicting", transient=True):
        images = [read_image(Path(file), mode) for file in batch]
        outputs = model(torch.stack([prepared(image) for image in images]).to(device))
        for file, image, output in zip(batch, images, outputs, strict=True):
            name = Path(file).relative_to(root)
            with uninterrupted():
                picture = predictions.add(name, image, output)
                if config.pictures:
                    target = folder / "pictures" / name.with_suffix(".jpg")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(target)
    with uninterrupted():
        predictions.write()
    print(f"{len(files)} images: {', '.join(map(str, _written(folder)))}")
    return len(files)


def _written(folder: Path) -> list[Path]:
    return [folder / name for name in (*NAMES, "pictures") if (folder / name).exists()]


def _predictions(
    task: Task | None, model: Any, recipe: dict[str, Any], config: Predict, folder: Path
) -> Predictions:
    cfg = recipe["pretrained_cfg"]
    if task is None:
        return Labels(folder, cfg.get("label_names") or ())
    if isinstance(task, Detection):
        limit = detectors.without_limit(model, config.score)
        return Objects(folder, task, cfg["input_size"][1], config.score, limit)
    return Masks(folder, task)


def _preprocessing(task: Task | None, recipe: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Return what makes the network's input [C, S, S] of an image, as in the evaluation of its training."""
    cfg = recipe["pretrained_cfg"]
    channels, side, _ = cfg["input_size"]
    data = Data(name="", img_size=side, in_chans=channels)
    transform: Callable[[Image.Image], Tensor]
    if task is None:
        transform = transforms.create_transform(
            data, resolve_data_config(pretrained_cfg={"crop_pct": 1.0, **cfg}), training=False
        )
    else:
        transform = create_transform(data, cfg, training=False, boxes=False)
    return transform
