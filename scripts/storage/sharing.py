"""A classifier's checkpoint of dcn-train as a folder of ``zoo.save``, or as a repository of the hub."""

import csv
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import zoo
from zoo.card import CARD, card_text
from zoo.pretrained import CONFIG, WEIGHTS

from . import checkpoint
from .files import atomically

_BEST = "eval/top1"  # of classification, whose networks alone timm builds


def to_folder(path: Path | str, folder: Path | str, *, license: str | None = None, overwrite: bool = False) -> None:
    """Write a checkpoint's network with ``zoo.save``, and its model card; ``zoo.load(folder)`` loads it.

    Raises:
        FileExistsError: If the folder holds a model or a README.md, unless ``overwrite`` is set.
        FileNotFoundError: If the checkpoint doesn't exist.
        ValueError: If it is a detector, a segmenter or a plain network, or damaged.
    """
    check_free(folder, (CONFIG, WEIGHTS, CARD), overwrite)
    model, arguments = _network(path)
    zoo.save(model, folder, arguments)
    text = card_text(model, Path(folder).resolve().name, card(path, license))

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomically(Path(folder, CARD), write)


def check_free(folder: Path | str, names: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace files of a folder silently.

    Raises:
        FileExistsError: If the folder has one of these files, unless ``overwrite`` is set.
        NotADirectoryError: If it is a file.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise NotADirectoryError(f"expected a folder, got folder={folder}, which is a file")
    if there := [name for name in names if Path(folder, name).exists()]:
        if overwrite:
            return
        raise FileExistsError(
            f"folder={folder} has {', '.join(there)} already; take another folder, or set overwrite=true"
        )


def push(path: Path | str, repository: str, *, license: str | None = None, private: bool | None = None) -> str:
    """Upload a checkpoint's network by ``zoo.push``; the card has the data, metrics and command of its run.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If the checkpoint doesn't exist.
        ValueError: As ``to_folder`` and ``zoo.push``.
        OSError: If the hub refuses the upload.
    """
    model, arguments = _network(path)
    return zoo.push(model, repository, card(path, license), model_args=arguments, private=private)


def card(path: Path | str, license: str | None = None) -> zoo.Card:
    """Return what the run's folder says of a checkpoint; nothing where files are missing.

    Of paths only the last name is shown, since the rest belongs to a machine.
    """
    run = Path(path).resolve().parent.parent
    config = run / "config.json"
    values = json.loads(config.read_text()) if config.is_file() else {}
    name, root = values.get("data.name"), values.get("data.root")
    data = " ".join(part for part in (name, Path(root).name if root else None) if part)
    overrides = run / ".hydra" / "overrides.yaml"
    given = OmegaConf.to_container(OmegaConf.load(overrides)) if overrides.is_file() else None
    command = None if given is None else shlex.join(["dcn-train", *(_without_path(str(word)) for word in given)])
    return zoo.Card(data=data or None, metrics=_metrics(Path(path)), command=command, license=license)


def _network(path: Path | str) -> tuple[Any, dict[str, Any]]:
    """Return a network and the arguments of ``timm.create_model`` that built it."""
    recipe = checkpoint.read_recipe(path)
    if recipe.get("head") is not None:
        raise ValueError(
            f"{path} is a {recipe['head']['name']}, which timm can't build; share the checkpoint itself, which "
            "dcn-predict and zoo.scripts.storage.checkpoint.load read"
        )
    if recipe["dcn"] is None:
        raise ValueError(f"{path} is a plain network, which timm saves and pushes itself; take the dcn variant's")
    model: Any = checkpoint.load(path)
    # So many classes have the recorded names, not timm's number of them.
    model.pretrained_cfg = {**model.pretrained_cfg, "num_classes": model.num_classes}
    own = {"model_name", "num_classes"}
    return model, {key: value for key, value in recipe["create_model"].items() if key not in own}


def _metrics(path: Path) -> dict[str, float] | None:
    """Return the metrics of the epoch that a checkpoint is of: the last one, or the first with the best score."""
    log = path.parent / "metrics.csv"
    if not log.is_file():
        return None
    with log.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if k.startswith("eval/")} for row in csv.DictReader(file)]
    if not rows:
        return None
    best = path.stem == "best" and _BEST in rows[0]
    row = max(rows, key=lambda row: row[_BEST]) if best else rows[-1]
    return {key.removeprefix("eval/"): value for key, value in row.items()}


def _without_path(override: str) -> str:
    key, equals, value = override.partition("=")
    return f"{key}=/path/to/{Path(value).name}" if equals and value.startswith(("/", "~")) else override
