"""A network to look at, and the images that it was made for: its size, its normalisation, its classes."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from ..config.schema import Data
from ..data.digits import CANVAS
from ..data.distortions import DISTORTIONS
from ..data.loaders import Loader, create_evaluation
from ..storage import checkpoint


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network in eval mode, with the images to evaluate as it was trained on them."""

    name: str  # what errors call it
    model: Any
    data: Data
    loader: Loader
    transform: dict[str, Any]  # mean, std and the like, by timm's names
    answers: tuple[str, ...] | None  # the names of its outputs, where they are known
    classes: tuple[str, ...] | None  # those of the data, which may be fewer, or in another order

    def labels(self) -> Tensor:
        """Return [classes of the data] which output stands for each class: by name, or else by number.

        Raises:
            ValueError: For classes that the network doesn't know.
        """
        if self.answers and self.classes:
            if unknown := [c for c in self.classes if c not in self.answers]:
                raise ValueError(
                    f"'{self.name}' doesn't know the classes {', '.join(unknown[:5])} of the data; it knows "
                    f"{', '.join(self.answers[:10])}: set data= to the data of its training"
                )
            return torch.tensor([self.answers.index(c) for c in self.classes])
        outputs = self.model.num_classes
        number = len(self.classes or ()) or self.data.num_classes or outputs
        if number != outputs:
            raise ValueError(
                f"'{self.name}' has {outputs} classes, but the data have {number}: "
                "set data= to the data of its training"
            )
        return torch.arange(outputs)


def existing(path: str) -> Path:
    """Return the path of a checkpoint.

    Raises:
        FileNotFoundError: Where there is none; the message names those nearby.
    """
    if Path(path).is_file():
        return Path(path)
    near = sorted(str(p) for p in Path("runs").glob("**/*.safetensors"))[-5:]
    raise FileNotFoundError(f"no checkpoint {path!r}; under runs/ there are: {', '.join(near) or 'none'}")


def of_checkpoint(path: Path, name: str, config: Any, device: torch.device, seed: int) -> Subject:
    """Load a checkpoint, and the evaluation split as its images were in training.

    Args:
        path: Of the checkpoint.
        name: What errors call it.
        config: An ``InspectedData``.
        device: Of the network.
        seed: Of the data.

    Raises:
        FileNotFoundError: For a checkpoint or a folder of images that is not there.
        ValueError: For a network whose images have other channels, or whose weights are not finite.
    """
    recipe, model = checkpoint.read_recipe(path), checkpoint.load(path, device)
    if broken := [key for key, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: weights that are not finite, such as {broken[0]}: the training diverged")
    recorded = recipe.get("pretrained_cfg") or {}
    size = recorded.get("input_size", (recipe["create_model"].get("in_chans"), None))
    names = recorded.get("label_names")
    return _subject(name, model, complete(config, size[0], size[-1]), None if names is None else tuple(names), seed)


def of_timm(name: str, pretrained: bool, config: Any, seed: int) -> Subject:
    """Build a network by its name, and load the evaluation split at its size.

    Raises:
        FileNotFoundError: For a folder of images that is not there.
        ValueError: For a name that timm doesn't have, or a network that doesn't fit the data.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model '{name}'; close names: {', '.join(close) or '-'}")
    cfg = timm.get_pretrained_cfg(name)
    digits = config.name in DISTORTIONS
    data = complete(config, None, None if digits or cfg is None else cfg.input_size[-1])
    model = timm.create_model(name, pretrained=pretrained, in_chans=data.in_chans)
    return _subject(name, model.eval(), data, None, seed)


def complete(config: Any, channels: int | None, size: int | None) -> Data:
    """Return an ``InspectedData`` as ``Data``, with these channels and this size where it leaves them open."""
    digits = config.name in DISTORTIONS
    chosen = {
        "in_chans": config.in_chans or channels or (1 if digits else 3),
        "img_size": config.img_size or size or (CANVAS if digits else 224),
    }
    return Data(**{**vars(config), **chosen})


def _subject(name: str, model: Any, data: Data, answers: tuple[str, ...] | None, seed: int) -> Subject:
    transform = resolve_data_config({}, model=model)
    loader, classes, transform = create_evaluation(data, transform, model.num_classes, seed)
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    if channels != (found := transform["input_size"][0]):
        raise ValueError(
            f"'{name}' reads {channels} channels, the data have {found}: set data= to the data of its training, "
            f"got {data.name=}, {data.in_chans=}"
        )
    return Subject(
        name=name, model=model, data=data, loader=loader, transform=transform, answers=answers, classes=classes
    )
