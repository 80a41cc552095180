"""A converted network in a folder, in the layout of a hub repository: weights (safetensors) and config.json."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from safetensors.torch import save_file
from timm.utils import unwrap_model
from torch import Tensor, nn

from dcn_ops import DeformConv2d
from dcn_ops.messages import shown
from zoo.check import check_folder, check_network
from zoo.convert import LAYER_ARGUMENTS
from zoo.mixers import DeformMixer2d, arguments, deformable_layers
from zoo.pretrained import CONFIG, LOADING, WEIGHTS, data_config
from zoo.rebuild import create, difference
from zoo.repository import find


def save(model: nn.Module, folder: str | Path, model_args: Mapping[str, Any] | None = None) -> None:
    """Write weights (safetensors) and config.json of a converted timm network, in the layout of a hub repository.

    ``zoo.load(folder)`` rebuilds it. So does ``timm.create_model("local-dir:" + folder, pretrained=True)`` after
    ``import zoo``, or "hf-hub:" once the folder is uploaded. Before anything is written, the network is rebuilt
    without data; a network that can't be rebuilt is refused.

    Args:
        model: A converted network of ``timm.create_model``, or InternImage, which has deformable layers of its own;
            also in ``torch.compile`` or a data-parallel wrapper.
        folder: It is created if it is missing; files of an earlier call are replaced.
        model_args: The arguments of ``timm.create_model`` that built the network, if timm doesn't record them
            (before 1.0.31) or JSON can't hold them.

    Raises:
        ValueError: If timm.create_model didn't build the network or cut it (features_only), or if the network has
            no deformable layer, has no data, or can't be rebuilt, such as a pruned one.
        TypeError: If the model is no network, the folder no path, or model_args no dict.
        NotADirectoryError: If the folder is a file.
    """
    check_network(model)
    check_folder(folder)
    if Path(folder).is_file():
        raise NotADirectoryError(f"expected a folder, got {str(folder)!r}, which is a file")
    model = unwrap_model(model)
    base = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not base or not hasattr(model, "num_classes"):
        raise ValueError(
            f"expected a whole network of timm.create_model, got {type(model).__name__}, which zoo.load couldn't "
            "build; save its state_dict, and load it after building the network and inject_ with the same config"
        )
    deformable = deformable_layers(model)
    if not deformable:
        raise ValueError(f"{type(model).__name__} has no deformable layer; convert it with zoo.inject_ first")
    converted = {  # InternImage may have none: its layers are its own
        name: arguments(layer)
        if isinstance(layer, DeformMixer2d)
        else {argument: getattr(layer, argument) for argument in LAYER_ARGUMENTS}
        for name, layer in deformable.items()
        if isinstance(layer, DeformConv2d | DeformMixer2d)
    }
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(
            f"{type(model).__name__} has weights on the meta device, which hold no data; load them first"
        )
    if not isinstance(model_args, Mapping | None):
        raise TypeError(
            f"expected a dict of the arguments of timm.create_model for model_args, got {shown(model_args)}"
        )
    # ``deformable`` records the conversion, and the number of classes has its own key.
    not_saved = {"base", "dcn", "deformable", "num_classes", *LOADING}
    built = {**getattr(model, "_model_args", {}), **(model_args or {})}
    of_timm = {key: value for key, value in built.items() if key not in not_saved}
    described = _as_json({**of_timm, "base": base, "deformable": converted})
    config = _config(model, _rebuildable(model, described))
    _write(Path(folder), config, _apart(model.state_dict()))


def _write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write both files, and replace those of an earlier call once both are complete."""
    folder.mkdir(exist_ok=True, parents=True)
    with TemporaryDirectory(dir=folder) as new:
        written = Path(new, CONFIG)
        written.write_text(json.dumps(config, indent=2))
        save_file(weights, Path(new, WEIGHTS))
        # safetensors makes a file that no other user may read.
        shutil.copymode(written, Path(new, WEIGHTS))
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(new, name), folder / name)


def load(source: str | Path, **kwargs: Any) -> nn.Module:
    """Return the network that ``save`` wrote, or ``push`` uploaded.

    The folder can't choose other files to read: weights come only from its model.safetensors, and config.json may
    name only an architecture of timm and its arguments.

    Args:
        source: A folder that ``save`` wrote. If there is none of this name: a repository of the Hugging Face hub,
            "user/name" or "user/name@revision".
        **kwargs: As in ``timm.create_model``, such as ``num_classes``, except arguments that choose what is loaded.

    Raises:
        FileNotFoundError: If there is no config.json or no model.safetensors, or the hub has no such repository.
        ValueError: If ``save`` didn't write config.json, the architecture doesn't have one of the arguments, or the
            weights are damaged or don't fit the network.
        TypeError: If the folder is no path.
    """
    check_folder(source)
    own = sorted({"model_name", "pretrained", "pretrained_cfg"} & kwargs.keys())
    if own:
        raise ValueError(f"the folder determines what is loaded, but got {', '.join(own)}; leave that out")
    folder = find(source)
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a folder with {CONFIG} and {WEIGHTS}, got {str(folder)!r}{_cure(folder)}"
        )
    try:
        config = json.loads(path.read_text())
        name, arguments, cfg = config["architecture"], config["model_args"], config["pretrained_cfg"]
        cfg = data_config(cfg) | {"num_classes": config["num_classes"], "source": "local-dir", "file": str(folder)}
        refused = LOADING & set(arguments)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"expected a {CONFIG} of zoo.save, got {str(path)!r}: {error!r}") from error
    if name != "dcn":
        raise ValueError(
            f"expected a {CONFIG} of zoo.save, with the architecture 'dcn', got {name!r} in {str(path)!r}; "
            "timm.create_model('local-dir:...') loads networks that are not converted"
        )
    if refused:
        raise ValueError(f"{str(path)!r} names {sorted(refused)}, which choose what is loaded; remove them")
    try:
        return timm.create_model("dcn", pretrained=True, pretrained_cfg=cfg, **{**arguments, **kwargs})
    # The architecture doesn't have an argument, or timm doesn't know a name.
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{str(path)!r}, with the arguments {kwargs}, describes no timm network: {error!r}"
        ) from error


def _cure(folder: Path) -> str:
    found = [folder, *folder.glob("*.safetensors")] if folder.suffix != ".safetensors" else [folder]
    if found[-1].suffix != ".safetensors":
        return ""
    return (
        f"; if {found[-1].name} is a checkpoint of dcn-train: dcn-share checkpoint={found[-1]} folder=FOLDER, or "
        "zoo.scripts.storage.checkpoint.load"
    )


def _rebuildable(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that rebuild the network: the given ones, and those that the network's attributes show."""
    try:
        rebuilt = create(**arguments, num_classes=model.num_classes)
        theirs = _traits(rebuilt)
        changed = {key: value for key, value in _traits(model).items() if value not in (None, theirs[key])}
        if changed:
            arguments = _as_json({**arguments, **changed})
            rebuilt = create(**arguments, num_classes=model.num_classes)
        reason = difference(model, rebuilt, _input_size(model))
    except Exception as error:
        reason = str(error)
    if reason is None:
        return arguments
    given = {key: value for key, value in arguments.items() if key not in ("base", "deformable")}
    raise ValueError(
        f"{type(model).__name__} can't be rebuilt as {arguments['base']!r} with {given}: {reason}; pass the other "
        "arguments of timm.create_model in zoo.save(model, folder, model_args={...}), or, if it was changed since, "
        "save its state_dict"
    )


def _traits(model: Any) -> dict[str, Any]:
    """Return the attributes of a network that correspond to arguments and may have changed since it was built."""
    head = getattr(model, "head", None)
    pools = (
        getattr(head, "global_pool", None),
        getattr(head, "pool_type", None),
        getattr(model, "global_pool", None),
    )
    names = [getattr(pool, "pool_type", pool) for pool in pools]
    size = getattr(model, "_traits", {}).get("img_size")
    return {
        "global_pool": next((name for name in names if isinstance(name, str)), None),
        "in_chans": getattr(model, "in_chans", None),
        "img_size": None if size is None else list(size),
    }


def _input_size(model: Any) -> tuple[int, int, int]:
    traits = _traits(model)
    channels, *sides = model.pretrained_cfg["input_size"]
    height, width = traits["img_size"] or getattr(model, "_model_args", {}).get("img_size") or sides
    return (traits["in_chans"] or channels, height, width)


def _config(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    cfg = data_config(model.pretrained_cfg)
    if cfg["num_classes"] != model.num_classes:
        cfg = {key: value for key, value in cfg.items() if key not in ("label_names", "label_descriptions")}
    # The loaded network no longer has the background class of the source's weights.
    cfg = {key: value for key, value in cfg.items() if key not in ("architecture", "label_offset")}
    cfg |= {"num_classes": model.num_classes, "input_size": _input_size(model)}
    shown = {"num_classes": model.num_classes, "num_features": model.num_features}
    return {"architecture": "dcn", **shown, "model_args": arguments, "pretrained_cfg": cfg}


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments after a round trip through JSON."""
    found = {}
    for key, value in arguments.items():
        try:
            found[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"expected arguments that JSON can hold, got {key}={value!r} of timm.create_model; pass its name, "
                f"zoo.save(model, folder, model_args={{{key!r}: ...}})"
            ) from error
    return found


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors that share no memory, as safetensors requires; copies only where necessary."""
    seen: set[int] = set()
    found = {}
    for key, value in state.items():
        tensor = value.detach().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        found[key] = tensor
    return found
