"""Images from timm's readers through torchvision's transforms, and the errors of a folder of images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset
from torchvision.transforms import v2

from ..config.schema import Data
from . import folders, layouts
from .distortions import DISTORTIONS
from .pixels import to_mode
from .transforms import create_transform

_MODES = {1: "L", 3: "RGB"}  # by the number of channels
_READERS = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")


class Images(torch.utils.data.Dataset[Any]):
    """A timm data set with an index. An unreadable image is an error that names the file.

    timm's own ``__getitem__`` would replace it with the next image.
    """

    def __init__(self, dataset: Any, transform: v2.Compose, mode: str) -> None:
        self.dataset, self.transform, self.mode = dataset, transform, mode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.decode(index)
        return self.transform(image), label

    def decode(self, index: int) -> tuple[Image.Image, int]:
        """Return the whole image and its label.

        Raises:
            ValueError: If the image can't be decoded, or has no label.
        """
        try:
            with self._opened(index) as (source, label):
                image = to_mode(source, self.mode)
        except Exception as error:  # Pillow may raise anything for a damaged image
            raise ValueError(f"can't read the image {self.name(index)}: {error}; repair or delete it") from error
        if label is None or label < 0:
            raise ValueError(f"the image {self.name(index)} has no label, got {label}")
        return image, label

    def check_header(self, index: int) -> str | None:
        """Return what is wrong with the first bytes of an image."""
        try:
            with self._opened(index):
                return None
        except Exception as error:  # Pillow may raise anything for a damaged image
            return f"{self.name(index)}: {error}"

    def name(self, index: int) -> str:
        """Return the path of an image, or the data set's name for it."""
        reader: Any = getattr(self.dataset, "reader", self.dataset)
        if hasattr(reader, "samples"):
            return str(reader.samples[index][0])
        return f"{index} of {type(reader).__name__}"

    def labels(self) -> Sequence[int] | None:
        """Return the labels without decoding images, or None if the data set has no list of labels."""
        reader: Any = getattr(self.dataset, "reader", None)
        if hasattr(reader, "samples"):
            return [label for _, label in reader.samples]
        if hasattr(reader, "label_key") and hasattr(reader, "dataset"):
            return list(reader.dataset[reader.label_key])
        for name in ("targets", "_labels", "labels"):
            if hasattr(self.dataset, name):
                return [int(label) for label in getattr(self.dataset, name)]
        return None

    @contextmanager
    def _opened(self, index: int) -> Iterator[tuple[Image.Image, int]]:
        reader = getattr(self.dataset, "reader", None)
        source, label, *_ = self.dataset[index] if reader is None else reader[index]
        if isinstance(source, Image.Image):
            yield source, label
        else:
            with source, Image.open(source) as image:
                yield image, label


def create_datasets(config: Data, transform: dict[str, Any]) -> tuple[Any, Any]:
    """Build the two splits, and do all checks that are possible before training.

    Raises:
        FileNotFoundError: If a folder doesn't exist.
        ValueError: If the kind of data set is unknown, a class is empty, only one split has a class, or files are
            no images.
    """
    if _is_folder(config):
        with layouts.advising(config.root, "folder"):
            readers = folders.open_splits(config)
        train, evaluate = (_of_folder(r, config, transform, t) for r, t in zip(readers, (True, False), strict=True))
    else:
        train, evaluate = (_of_timm(config, transform, training) for training in (True, False))
    if class_to_idx(train) != class_to_idx(evaluate):
        raise ValueError(
            f"expected the same classes in both splits of {config.name}, got {class_names(train)} in "
            f"'{config.train_split}' and {class_names(evaluate)} in '{config.eval_split}'"
        )
    return train, evaluate


def create_evaluation(config: Data, transform: dict[str, Any]) -> Any:
    """Build the evaluation split as ``create_datasets`` does, without the training split."""
    if _is_folder(config):
        with layouts.advising(config.root, "folder"):
            reader = folders.open_evaluation(config)
        return _of_folder(reader, config, transform, training=False)
    return _of_timm(config, transform, training=False)


def _is_folder(config: Data) -> bool:
    if config.in_chans not in _MODES:
        raise ValueError(f"images are read as grey or RGB: expected data.in_chans=1 or 3, got {config.in_chans}")
    if config.name and "/" not in config.name:
        raise ValueError(
            f"expected data.name={', '.join(DISTORTIONS)}, '' for a folder of images (data=folder), or a name of "
            f"timm that begins with {', '.join(_READERS)}, got '{config.name}'"
        )
    if not config.name and config.kwargs:
        raise ValueError(f"data.kwargs go to the data sets of timm, and a folder takes none, got {config.kwargs}")
    return not config.name


def _of_folder(reader: folders.ClassFolders, config: Data, transform: dict[str, Any], training: bool) -> Images:
    steps = create_transform(config, transform, training)
    dataset = Images(ImageDataset(config.root, reader=reader), steps, _MODES[config.in_chans])
    _check_headers(dataset)
    return dataset


def _of_timm(config: Data, transform: dict[str, Any], training: bool) -> Any:
    kwargs: dict[str, Any] = dict(config.kwargs)
    mode = _MODES[config.in_chans]
    if config.name.startswith("torch/"):
        kwargs["download"] = config.download
    else:
        # Unconverted, for ``to_mode``. From TFDS timm gets arrays, and must know their channels.
        read_as = mode if config.name.startswith("tfds/") else ""
        kwargs |= {"input_img_mode": read_as, "batch_size": config.batch_size}
    split = config.train_split if training else config.eval_split
    dataset = create_dataset(config.name, root=config.root, split=split, is_training=training, **kwargs)
    if hasattr(dataset, "loader"):  # a torchvision data set, which converts to RGB
        dataset.loader = _load
    steps = create_transform(config, transform, training)
    if isinstance(dataset, IterableDataset):
        dataset.transform = v2.Compose([partial(to_mode, mode=mode), steps])  # type: ignore[attr-defined]
        return dataset
    return Images(dataset, steps, mode)


def _load(path: str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def class_to_idx(dataset: Any) -> dict[str, int]:
    """Return the classes of a data set, or an empty dict if they are unknown."""
    inner = getattr(dataset, "dataset", dataset)
    for owner in (getattr(inner, "reader", None), inner):
        if found := getattr(owner, "class_to_idx", None):
            return dict(found)
    return {}


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Return the names of the classes, by index, or None if they are unknown."""
    names: dict[int, str] = {}
    for name, index in class_to_idx(dataset).items():
        names.setdefault(index, str(name))  # ImageNet has several names for a class
    return tuple(names[index] for index in sorted(names)) or None


def _check_headers(dataset: Images) -> None:
    wrong = [problem for i in range(len(dataset)) if (problem := dataset.check_header(i))]
    if wrong:
        listed = "\n  ".join(wrong[:10])
        raise ValueError(f"{len(wrong)} of {len(dataset)} images can't be read; repair or delete them:\n  {listed}")


def count_classes(dataset: Any) -> Counter[int] | None:
    """Count the images of each class; None if the data set has no list of labels."""
    labels = dataset.labels if isinstance(getattr(dataset, "labels", None), torch.Tensor) else None
    if labels is None:
        inner = getattr(dataset, "dataset", dataset)
        labels = inner.labels() if isinstance(inner, Images) else None
    return None if labels is None else Counter(int(label) for label in labels)
