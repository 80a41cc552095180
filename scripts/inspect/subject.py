"""A network to inspect, and the images for it: size, normalisation, classes."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from ..config.ranges import check_least
from ..config.schema import Data
from ..data.digits import CANVAS
from ..data.distortions import DISTORTIONS
from ..data.loaders import Loader, create_evaluation
from ..data.scenes import splits as scenes
from ..networks.download import downloading
from ..storage import checkpoint


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network in eval mode, and the evaluation images with the preprocessing of its training."""

    name: str  # for error messages
    model: Any
    data: Data
    loader: Loader
    transform: dict[str, Any]  # mean, std and the like, with timm's names
    answers: tuple[str, ...] | None  # the names of its outputs, if known
    classes: tuple[str, ...] | None  # those of the data, which may be fewer, or in another order

    def labels(self) -> Tensor:
        """Return [classes of the data]: the output for each class, matched by name, or else by number.

        Raises:
            ValueError: If the network doesn't know a class.
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


def of_checkpoint(path: Path, name: str, config: Any, device: torch.device, seed: int) -> Subject:
    """Load a checkpoint, and the evaluation split with the preprocessing of its training.

    Args:
        path: Path of the checkpoint.
        name: Name for error messages.
        config: An ``InspectedData``.
        device: Device of the network.
        seed: Seed of the data.

    Raises:
        FileNotFoundError: If the checkpoint or a folder of images doesn't exist.
        ValueError: If the images have another number of channels than the network's, or weights are not finite.
    """
    recipe, model = checkpoint.read_recipe(path), checkpoint.load(path, device)
    if broken := [key for key, value in model.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{path}: weights that are not finite, such as {broken[0]}: the training diverged")
    recorded = recipe.get("pretrained_cfg") or {}
    size = recorded.get("input_size", (recipe["create_model"].get("in_chans"), None))
    names, head = recorded.get("label_names"), recipe.get("head")
    if (config.name in scenes.FORMATS) != (head is not None):
        raise ValueError(
            f"{path} is {'a classifier' if head is None else head['name']}, which doesn't read "
            f"data={config.name or 'folder'}: set data= to the data of its training"
        )
    if head is not None:
        return _of_scenes(name, model, recipe, complete(config, size[0], size[-1]), seed)
    return _subject(name, model, complete(config, size[0], size[-1]), None if names is None else tuple(names), seed)


def _of_scenes(name: str, model: Any, recipe: checkpoint.Recipe, data: Data, seed: int) -> Subject:
    """Return a network with a head, and scenes whose classes have the numbers of its training."""
    names = (recipe.get("pretrained_cfg") or {}).get("label_names")
    data = dataclasses.replace(data, classes=data.classes or names)
    targets = scenes.targets_of(recipe["head"]["name"])
    loader, classes, transform = create_evaluation(
        data, resolve_data_config({}, model=model), model.num_classes, seed, targets
    )
    if names and tuple(names) != classes:
        raise ValueError(
            f"'{name}' knows the classes {', '.join(names)}, got data.classes={data.classes}; drop data.classes"
        )
    return Subject(
        name=name, model=model, data=data, loader=loader, transform=transform, answers=classes, classes=classes
    )


def of_timm(name: str, pretrained: bool, config: Any, seed: int) -> Subject:
    """Build a network by its name, and load the evaluation split at its size.

    Raises:
        FileNotFoundError: If a folder of images doesn't exist.
        ValueError: If timm doesn't have the name, or the network doesn't fit the data.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model '{name}'; close names: {', '.join(close) or '-'}")
    cfg = timm.get_pretrained_cfg(name)
    digits = config.name in DISTORTIONS
    data = complete(config, None, None if digits or cfg is None else cfg.input_size[-1])
    with downloading(name, "pretrained=false (random weights), or checkpoint=FILE of dcn-train instead of name"):
        model = timm.create_model(name, pretrained=pretrained, in_chans=data.in_chans)
    return _subject(name, model.eval(), data, None, seed)


def complete(config: Any, channels: int | None, size: int | None) -> Data:
    """Return an ``InspectedData`` as ``Data``, with these channels and this size if it doesn't set them.

    Raises:
        ValueError: If it sets one below 1.
    """
    check_least(config, {"img_size": 1, "in_chans": 1}, "data.")
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
            f"'{name}' reads {channels} channels, the data have {found}: set data= to the data of its training"
            f"{'; without it these are the digits of the default run' if data.name in DISTORTIONS else ''}"
        )
    return Subject(
        name=name, model=model, data=data, loader=loader, transform=transform, answers=answers, classes=classes
    )
