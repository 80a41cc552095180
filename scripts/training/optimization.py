"""The recipe as timm objects: what learns, at which rate, from which targets."""

import difflib
import fnmatch
from collections.abc import Iterable

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from zoo.optim import param_groups

from ..config.schema import Optim


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Freeze parameters whose own name, or the name of a module that contains them, matches a glob.

    Returns:
        The norm layers whose parameters are all frozen; they should stay in eval mode.

    Raises:
        ValueError: If a pattern matches nothing; the message has similar names.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for pattern in patterns:
        names = [name for name in (*modules, *parameters) if name and fnmatch.fnmatchcase(name, pattern)]
        if not names:
            close = difflib.get_close_matches(pattern.replace("*", ""), [*modules, *parameters], n=5, cutoff=0.5)
            raise ValueError(
                f"the pattern '{pattern}' of optim.freeze matches no module and no parameter; "
                f"close names: {', '.join(close) or ', '.join(name for name, _ in model.named_children())}"
            )
        for name in names:
            if name in modules:
                modules[name].requires_grad_(False)
            else:
                parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"optim.freeze={list(patterns)} leaves nothing to train")
    return [
        module
        for module in modules.values()
        if getattr(module, "running_mean", None) is not None
        and not any(p.requires_grad for p in module.parameters())
        and any(True for _ in module.parameters())
    ]


def create_optimizer(model: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """Build timm's optimizer, with a separate learning rate for the offset predictors."""
    return create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.lr,
        param_group_fn=lambda m: param_groups(m, config.weight_decay, config.offset_lr_scale, config.layer_decay),
    )


def create_scheduler(optimizer: torch.optim.Optimizer, config: Optim, steps: int) -> Scheduler:
    """Build timm's scheduler, a function of the optimizer step; an epoch has ``steps`` of them.

    Raises:
        ValueError: If the schedule is unknown, or depends on more than the step.
    """
    if "plateau" in config.sched or config.sched == "none":
        raise ValueError(
            f"expected a timm scheduler that depends only on the step, such as 'cosine', got "
            f"optim.sched={config.sched}"
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=0.0,
        warmup_prefix=True,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    if scheduler is None:
        raise ValueError(f"expected a timm scheduler, such as 'cosine' or 'step', got optim.sched={config.sched}")
    return scheduler


def check(config: Optim, batch_size: int, processes: int) -> None:
    """Raise ``ValueError`` if the numbers of a recipe don't fit together."""
    if config.epochs < 1 or config.accumulate < 1:
        raise ValueError(
            f"expected at least one epoch and one part, got optim.epochs={config.epochs}, "
            f"optim.accumulate={config.accumulate}"
        )
    if not config.lr >= 0:
        raise ValueError(f"expected a learning rate of 0 or more, got optim.lr={config.lr}")
    if config.ema is not None and not 0 < config.ema < 1:
        raise ValueError(f"expected the decay of the average in 0 to 1, such as 0.999, got optim.ema={config.ema}")
    if batch_size % (processes * config.accumulate):
        raise ValueError(
            f"expected data.batch_size={batch_size}, the images of a step, to be a multiple of {processes} "
            f"processes times optim.accumulate={config.accumulate}"
        )
    if (config.mixup or config.cutmix) and batch_size // processes % 2:
        raise ValueError(f"mixup and cutmix pair the images of a process, got {batch_size // processes} of them")


def create_ema(model: nn.Module, decay: float | None, sharded: bool) -> ModelEmaV3 | None:
    """Return the average of the weights, or None without a decay.

    Raises:
        ValueError: If the weights are sharded over processes.
    """
    if decay is None:
        return None
    if sharded:
        raise ValueError("optim.ema keeps the whole average in each process, which FSDP2 avoids; drop one of them")
    # In the first steps it averages fewer steps, so that it forgets the initial weights.
    return ModelEmaV3(model, decay, use_warmup=True)
