"""The convolutions of a network that a config asks for, and the errors where that makes no sense."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig
from zoo.select import mismatch, refusal
from zoo.stages import feature_stages, find_name, stage_of_modules


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution, all its names (several if it is shared), and the stage of the first."""

    conv: nn.Conv2d
    names: tuple[str, ...]
    stage: int | None


def choose(model: nn.Module, config: DCNConfig) -> list[Site]:
    """Return the convolutions to replace, in order of definition.

    Raises:
        ValueError: If the model is itself a convolution or already converted, if it has no such stage or no
            module of an include pattern, or if no convolution fits.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_model(model, modules)
    _check_stages(model, config)
    _check_include(modules, config)
    chosen = []
    against = defaultdict(list)
    images = _image_readers(model, modules)
    for site in _sites(model, modules):
        ancestors = [modules[parent] for name in site.names for parent in _parents(name)]
        cannot = refusal(site.conv, ancestors, reads_image=not images.isdisjoint(site.names))
        reason = cannot or mismatch(site.names, site.stage, config)
        if reason is None:
            chosen.append(site)
        else:
            against[cannot is not None, reason].append(site.names[0])
    if not chosen:
        raise ValueError(_nothing(model, against))
    return chosen


def _sites(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[Site]:
    stages = stage_of_modules(model)
    names = defaultdict(list)
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d):
            names[module].append(name)
    return [Site(conv=conv, names=tuple(n), stage=stages[n[0]]) for conv, n in names.items()]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _image_readers(model: nn.Module, names: Iterable[str]) -> set[str | None]:
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    return {find_name(names, name) for name in ([first] if isinstance(first, str) else first)}


def _check_model(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    if isinstance(model, nn.Conv2d):
        raise ValueError(f"expected a network that contains convolutions, got the convolution {model}")
    done = [name for name, module in modules.items() if isinstance(module, DeformConv2d)]
    if done:
        raise ValueError(
            f"{type(model).__name__} is already converted: inject_ runs once, and {_some(done)} "
            "are deformable; start from the plain network, with all that shall be deformable in one config"
        )


def _check_stages(model: nn.Module, config: DCNConfig) -> None:
    if config.stages is None:
        return
    stages = sorted(set(feature_stages(model).values()))
    if not stages:
        raise ValueError(
            f"the stages of {type(model).__name__} are unknown, as it has no timm feature_info for its modules, "
            f"got {config.stages=}; use stages=None, and include to choose among the layers"
        )
    missing = [stage for stage in config.stages if stage not in stages]
    if missing:
        raise ValueError(f"{type(model).__name__} has the stages {stages}, but not {missing}, got {config.stages=}")


def _check_include(modules: Mapping[str, nn.Module], config: DCNConfig) -> None:
    names = [name for name in modules if name]
    for pattern in config.include:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
            raise ValueError(
                f"no module matches include pattern {pattern!r}; close names: {', '.join(close) or '-'}"
            )


def _nothing(model: nn.Module, against: Mapping[tuple[bool, str], list[str]]) -> str:
    # What the config excludes comes first: that is what its author can change.
    groups = sorted(against.items(), key=lambda group: group[0][0])[:8]
    lines = [f"  {reason}: {_some(names)}" for (_, reason), names in groups]
    return "\n".join([f"no convolution of {type(model).__name__} can be replaced:", *(lines or ["  it has none"])])


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
