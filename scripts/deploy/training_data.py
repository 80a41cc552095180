"""The images that a checkpoint of a detector or segmenter was evaluated on: its run records where they are."""

import json
import logging
from pathlib import Path
from typing import Any

from ..config.schema import Data
from ..data.scenes import splits
from . import photos

_log = logging.getLogger(__name__)
_RECORD = "config.json"  # dcn-train's, in the folder of the run
_KEYS = ("name", "root", "eval_split", "classes", "colors", "img_size", "in_chans")


def read(checkpoint: Path, limit: int) -> photos.Photos | None:
    """Return images of the evaluation split of a checkpoint's run; None if there is no run, or no data any more.

    Args:
        checkpoint: RUN/VARIANT/last.safetensors.
        limit: At most so many images.

    Raises:
        ValueError: If the data are damaged.
    """
    record = checkpoint.resolve().parent.parent / _RECORD
    if not record.is_file():
        return None
    known = json.loads(record.read_text())
    data = {key: known.get(f"data.{key}") for key in _KEYS}
    if data["name"] not in splits.FORMATS or not Path(str(data["root"])).is_dir():
        _log.warning("the data of the run are not at data.root=%s any more", data["root"])
        return None
    files = _files(Data(**data))
    _log.info("verifying on images of %s", data["root"])
    return photos.opened(files, limit)


def _files(data: Data) -> list[Any]:
    transform = {"mean": [0.5], "std": [0.5], "interpolation": "bilinear"}
    scenes = splits.create_evaluation(data, transform, "pixels" if data.name == "masks" else "boxes")
    return [str(scene.image) for scene in scenes.split.scenes]
