"""The networks of a run, plain and deformable: all are built and checked before the first step."""

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from dcn_ops import DeformConv2d
from zoo.hub import check_token
from zoo.repository import check_repository

from ..config.schema import Train
from ..data.loaders import Splits
from ..inspect.layers import deformable_layers
from ..storage import checkpoint
from ..tasks.task import Task
from . import optimization
from .metric_log import check_trackers

VARIANTS = ("plain", "dcn")
PRECISIONS = (None, "no", "bf16", "fp16")
# Arguments that the recipe sets itself, with the key that sets each.
_SET_BY = {"model_name": "model.name", "in_chans": "data.in_chans", "num_classes": "data.num_classes"}


@dataclass(frozen=True)
class Variant:
    """A network on the CPU, and the recipe for its checkpoints."""

    recipe: checkpoint.Recipe
    model: nn.Module


def check(config: Train) -> None:
    """Raise ``ValueError`` for errors of a config that don't depend on the data."""
    if not timm.is_model(config.model.name):
        close = difflib.get_close_matches(config.model.name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model '{config.model.name}'; close names: {', '.join(close) or '-'}")
    if unknown := set(config.variants) - set(VARIANTS):
        raise ValueError(f"expected variants among {VARIANTS}, got {sorted(unknown)}")
    if not config.variants or len(set(config.variants)) < len(config.variants):
        raise ValueError(f"expected one variant or both, each once, got variants={list(config.variants)}")
    check_trackers(config.trackers)
    _check_push(config)
    if config.checkpoint_every is not None and config.checkpoint_every < 1:
        raise ValueError(f"expected a step or more between states, got checkpoint_every={config.checkpoint_every}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"expected a precision among {PRECISIONS}, got precision={config.precision}")
    if twice := sorted(set(_SET_BY) & set(config.model.kwargs)):
        raise ValueError(f"set {_SET_BY[twice[0]]}, and drop model.kwargs.{twice[0]}")


def _check_push(config: Train) -> None:
    """Refuse a ``push_to`` that would fail at the end of the run."""
    if config.push_to is None:
        return
    check_token(check_repository(config.push_to))
    if config.task.name != "classification" or "dcn" not in config.variants:
        raise ValueError(
            f"push_to={config.push_to} shares the deformable classifier, got task={config.task.name} and "
            f"variants={list(config.variants)}; drop push_to"
        )


def build_all(config: Train, splits: Splits, task: Task, accelerator: Accelerator) -> dict[str, Variant]:
    """Build every network, on the CPU, with the same seed, and run each on zeros of the data's shape.

    Raises:
        FileNotFoundError: If ``model.checkpoint_path`` doesn't exist.
        ValueError: If the recipe, data, model or conversion is refused.
    """
    optimization.check(config.optim, config.data.batch_size, accelerator.num_processes)
    if (found := splits.transform["input_size"][0]) != config.data.in_chans:
        raise ValueError(f"the images have {found} channels, got data.in_chans={config.data.in_chans}")
    built = {}
    for name in config.variants:
        torch.manual_seed(config.seed)
        header = recipe_of(name, config, splits, task)
        model = _build(header, config, accelerator)
        if name == "plain" and any(isinstance(module, DeformConv2d) for module in model.modules()):
            raise ValueError(
                f"model.name={config.model.name} is already deformable; use "
                f"model.name={config.model.name.removesuffix('_dcn')}, which the variant dcn converts by dcn.*"
            )
        _check_model(name, model, config, splits, task, accelerator)
        built[name] = Variant(header, model)
    return built


def recipe_of(name: str, config: Train, splits: Splits, task: Task) -> checkpoint.Recipe:
    """Return the recipe that rebuilds a variant's network."""
    names = {"label_names": list(splits.classes)} if splits.classes else {}
    return {
        "create_model": {
            "model_name": config.model.name,
            "in_chans": config.data.in_chans,
            **task.arguments(),
            **config.model.kwargs,
        },
        **({} if (head := task.head()) is None else {"head": head}),
        "dcn": asdict(config.dcn) if name == "dcn" else None,
        "pretrained_cfg": {**splits.transform, **names},
    }


def _build(header: checkpoint.Recipe, config: Train, accelerator: Accelerator) -> nn.Module:
    path = config.model.checkpoint_path
    # One process per machine downloads the weights, and the others find them.
    with accelerator.local_main_process_first():
        model: Any = checkpoint.build(
            header, pretrained=config.model.pretrained, start=Path(path) if path else None
        )
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"{config.model.name} has no gradient checkpointing; drop grad_checkpointing=true")
        model.set_grad_checkpointing()
    if config.sync_bn and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ValueError("sync_bn=true needs GPUs: torch has no synchronised BatchNorm on the CPU")
        model = convert_sync_batchnorm(model)
    return model


def _check_model(
    name: str, model: nn.Module, config: Train, splits: Splits, task: Task, accelerator: Accelerator
) -> None:
    _try(name, model, splits, task)
    frozen = optimization.freeze(model, config.optim.freeze)
    optimization.create_scheduler(
        optimization.create_optimizer(model, config.optim), config.optim, len(splits.train)
    )
    part = config.data.batch_size // (accelerator.num_processes * config.optim.accumulate)
    alone = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm) and module not in frozen
    ]
    if part == 1 and alone:
        raise ValueError(
            f"{len(alone)} BatchNorms of '{name}' would take the statistics of 1 image: raise "
            f"data.batch_size={config.data.batch_size}, lower optim.accumulate={config.optim.accumulate}, or "
            "freeze them with optim.freeze"
        )
    steps = config.optim.epochs * len(splits.train)
    deformable = deformable_layers(model)
    if deformable and steps <= (waiting := config.optim.offset_warmup_steps):
        raise ValueError(
            f"optim.offset_warmup_steps={waiting} leaves no step for the offsets to learn in this run of {steps}; "
            f"set optim.offset_warmup_steps={steps // 10}"
        )


@torch.no_grad()
def _try(name: str, model: nn.Module, splits: Splits, task: Task) -> None:
    size = splits.transform["input_size"]
    training = model.training
    try:
        output = model.eval()(torch.zeros(2, *size))
    except Exception as error:  # a network may raise anything for images that it can't take
        raise ValueError(
            f"'{name}' can't take images of {list(size)} (data.in_chans, img_size): {error}"
        ) from error
    finally:
        model.train(training)
    if wrong := task.check(output, 2):
        raise ValueError(f"expected of '{name}' {wrong}; see model.name and model.kwargs")
