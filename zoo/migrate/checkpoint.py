"""``read``: a checkpoint of another library, whose deformable layers have this library's keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from torch import Tensor

from zoo.convert import LayerArguments
from zoo.migrate.files import read_tensors, tensors_in
from zoo.migrate.keys import find_layers, library


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Attributes:
        source: Whose names it has, such as "mmdetection" or "detectron2".
        weights: All tensors, by their names in the source; those of predictors are called ``offset_weight`` and
            ``offset_bias`` and stand at their layer.
        layers: The layers that predict their offsets, with the arguments of ``dcn_ops.DeformConv2d``.
        renamed: The names of the predictors' tensors in the source, and here.
        config: The text of the config in the checkpoint, or "".
    """

    source: str
    weights: dict[str, Tensor]
    layers: dict[str, LayerArguments]
    renamed: dict[str, str]
    config: str = ""


def read(
    checkpoint: str | PathLike[str] | Mapping[str, object] | Checkpoint, *, modulated: bool | None = None
) -> Checkpoint:
    """Read a checkpoint of mmcv's libraries, detectron2, torchvision, BasicSR or a DCNv2 fork.

    No code in it is run: files are read by ``torch.load(weights_only=True)``, as safetensors, or as a pickle of
    nothing but NumPy arrays.

    Args:
        checkpoint: A file, or a state_dict, or the dict around it that a training saved.
        modulated: Whether layers have masks (v2), for layers whose shapes allow both; else an error asks for it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint or holds code, there are no tensors, or a predictor fits no layer.
        TypeError: If the checkpoint is neither a path nor a dict.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        weights, config = tensors_in(checkpoint), ""
    elif isinstance(checkpoint, str | PathLike):
        weights, config = read_tensors(checkpoint)
    else:
        raise TypeError(f"expected the path of a checkpoint, or a state_dict, got {type(checkpoint)}")
    if not weights:
        raise ValueError(f"expected a state_dict with tensors, got the keys {list(checkpoint)[:4]}")  # type: ignore[arg-type]
    layers, renamed = find_layers(weights, modulated)
    own = {renamed.get(key, key): value for key, value in weights.items()}
    return Checkpoint(source=library(weights), weights=own, layers=layers, renamed=renamed, config=config)
