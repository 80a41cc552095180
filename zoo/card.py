"""The model card of a shared network: the README.md of its repository."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn

from zoo.mixers import deformable_layers

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a network doesn't know of itself.

    Args:
        data: What it was trained on, in a sentence.
        metrics: Its scores by name, such as ``{"top-1 accuracy, percent": 81.2}``.
        command: The command that trained it.
        license: Of the weights, by the hub's name, such as "apache-2.0"; None leaves it out.
    """

    data: str | None = None
    metrics: Mapping[str, float] | None = None
    command: str | None = None
    license: str | None = None


def card_text(model: Any, title: str, card: Card) -> str:
    """Return Markdown under the hub's metadata.

    Args:
        model: A converted network that ``zoo.save`` accepts.
        title: The repository's name.
        card: What to say of the training.
    """
    layers = deformable_layers(model)
    base = model.pretrained_cfg["architecture"]
    parts = [
        f"---\n{_metadata(model, card)}\n---\n",
        f"# {title}\n",
        f"`{base}` of timm with {len(layers)} deformable layers, made with dcn-zoo.\n",
        f'```python\nimport zoo\n\nmodel = zoo.load("{title}").eval()\n```\n',
        _data(model, card),
        *([_table("Metrics", ("metric", "value"), list(card.metrics.items()))] if card.metrics else []),
        *([f"## Training\n\n```bash\n{card.command}\n```\n"] if card.command else []),
        _table("Layers", ("layer", "is"), [(f"`{name}`", f"`{layer}`") for name, layer in _lines(layers).items()]),
    ]
    return "\n".join(parts)


def _metadata(model: Any, card: Card) -> str:
    task = "image-classification" if model.num_classes else "image-feature-extraction"
    data = ModelCardData(
        library_name="dcn-zoo",
        license=card.license,
        pipeline_tag=task,
        tags=[task, "timm", "dcn-zoo", "deformable-convolution"],
    )
    return str(data.to_yaml()).strip()


def _data(model: Any, card: Card) -> str:
    cfg = model.pretrained_cfg
    names = [str(name) for name in cfg.get("label_names") or ()]
    classes = f"{model.num_classes} classes" + (f": {', '.join(names)}" if len(names) == model.num_classes else "")
    images = f"Images of {list(cfg['input_size'])}, mean {list(cfg['mean'])}, std {list(cfg['std'])}; {classes}."
    return "\n".join(["## Data\n", *([f"{card.data}\n"] if card.data else []), f"{images}\n"])


def _lines(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    return {name: " ".join(str(layer).split()) for name, layer in layers.items()}


def _table(title: str, header: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, ("---", "---"), *rows)]
    return "\n".join([f"## {title}\n", *lines, ""])
