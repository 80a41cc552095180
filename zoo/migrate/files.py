"""Reads the tensors of a checkpoint file. Nothing in the file is run."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# Where the weights are in what a training saved; the moving average first, as its authors evaluate it.
_WEIGHTS = ("state_dict", "params_ema", "params", "model", "model_state_dict", "net")
# Records of training runs: of hooks, of configs, of random generators. An object that does nothing stands for them.
_RECORDS = (
    *("mmengine.", "mmcv.", "mmdet.", "mmseg.", "numpy.", "detectron2.", "fvcore.", "yacs."),
    *("addict.", "omegaconf.", "argparse.", "pathlib.", "datetime."),
)
# What a pickle of NumPy arrays is made of, as in detectron2's model zoo.
_ARRAYS = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"),
}


def read_tensors(path: str | PathLike[str]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a checkpoint by name, and the text of the config that is stored with them, or "".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint, has no tensors, or holds Python objects, which could be code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a checkpoint file, got {str(path)!r}")
    content = _safetensors(path) if Path(path).suffix == ".safetensors" else _pickled(path)
    found = tensors_in(content)
    if not found:
        raise ValueError(f"expected a checkpoint with tensors by name, got {str(path)!r}, which has none")
    return found, _config(content)


def tensors_in(content: object) -> dict[str, Tensor]:
    """Return the tensors by name of a state_dict, or of what a training saved around it; without ``module.``."""
    if not isinstance(content, Mapping):
        return {}
    inner = next((content[key] for key in _WEIGHTS if isinstance(content.get(key), Mapping)), content)
    found = {key: _tensor(value) for key, value in inner.items() if isinstance(key, str) and _is_array(value)}
    if found and all(key.startswith("module.") for key in found):  # nn.DataParallel
        return {key.removeprefix("module."): value for key, value in found.items()}
    return found


def _is_array(value: object) -> bool:
    # NumPy's arrays by their interface: the library does without importing it.
    return isinstance(value, Tensor) or (hasattr(value, "__array_interface__") and hasattr(value, "dtype"))


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value)


def _config(content: Mapping[str, Any]) -> str:
    meta = content.get("meta")
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, Mapping) else []
    return next((text for text in texts if isinstance(text, str)), "")


def _safetensors(path: str | PathLike[str]) -> Any:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; copy or download it again") from error


def _pickled(path: str | PathLike[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        try:
            names = get_unsafe_globals_in_checkpoint(path)
        except Exception:  # no archive of torch.save
            return _arrays(path, error)
    refused = sorted(name for name in names if not name.startswith(_RECORDS))
    if refused:
        raise ValueError(_not_run(path, ", ".join(refused)))
    with safe_globals([(_Record, name) for name in names]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(_not_run(path, ", ".join(names))) from error


def _not_run(path: str | PathLike[str], names: str) -> str:
    return (
        f"{str(path)!r} holds more than tensors: {names}. Unpickling that could run code, so it was not done; "
        "where you trust the file, write torch.save(model.state_dict(), file) with the code it comes from"
    )


class _Record:
    """In the place of an object of a training run: takes anything and holds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Record":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Arrays(pickle.Unpickler):
    """Unpickles NumPy arrays in plain containers, and no other class."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "collections.OrderedDict":
            return OrderedDict
        if f"{module}.{name}" not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _arrays(path: str | PathLike[str], error: Exception) -> Any:
    with open(path, "rb") as file:
        try:
            return _Arrays(file, encoding="latin1").load()
        except pickle.UnpicklingError as refused:
            if "." in str(refused) and " " not in str(refused):
                raise ValueError(_not_run(path, str(refused))) from refused
        except Exception:  # no pickle at all; the answer is below
            pass
    # Without torch's own message, which advises to run the file.
    raise ValueError(
        f"expected a checkpoint of torch.save, safetensors or a pickle of NumPy arrays, whole, got {str(path)!r}"
    ) from error
