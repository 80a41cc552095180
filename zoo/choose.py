"""The convolutions of a network that a config selects, and the errors if the selection makes no sense."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

from timm.layers import CondConv2d
from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig
from zoo.measure import Measured
from zoo.select import block_of, mismatch, refusal
from zoo.stages import find_name, stage_by_name, stage_by_stride

_FIRST_DEEP_STAGE = 2  # stride 8


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution, all its names (several if it is shared), and the stage of the first name."""

    conv: nn.Conv2d
    names: tuple[str, ...]
    stage: int | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The convolutions to replace, in order of definition, and why no config can replace the others."""

    sites: list[Site]
    refused: dict[str, str]  # only kernel sizes of at least 3


def choose(model: nn.Module, config: DCNConfig, measured: Measured) -> Choice:
    """Return the convolutions to replace.

    Raises:
        ValueError: If the model is itself a convolution or already converted, if it has no such stage, if a pattern
            matches no module, or if no convolution can be replaced.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_model(model, modules)
    sites = _sites(model, modules, measured)
    _check_stages(model, sites, config, measured)
    _check_patterns(modules, config)
    refusals = _refusals(sites, _image_readers(model, modules, measured), measured)
    able = [site for site in sites if site not in refusals]
    only_deep = config.stages is None and any(_is_deep(site) for site in able)
    reasons = {site: _why_not(site, config, only_deep) for site in able}
    chosen = [site for site in able if reasons[site] is None]
    if not chosen:
        raise ValueError(_nothing(model, reasons, refusals))
    return Choice(
        sites=_every_nth_block(model, chosen, config.every) if config.every > 1 else chosen,
        refused={site.names[0]: reason for site, reason in refusals.items() if max(site.conv.kernel_size) >= 3},
    )


def _refusals(sites: Iterable[Site], readers: set[nn.Conv2d], measured: Measured) -> dict[Site, str]:
    refusals = {}
    for site in sites:
        positions = measured.positions.get(site.conv)
        reason = refusal(site.conv, reads_image=site.conv in readers, positions=positions)
        if reason is not None:
            refusals[site] = reason
    return refusals


def _why_not(site: Site, config: DCNConfig, only_deep: bool) -> str | None:
    if only_deep and not _is_deep(site):
        return "shallow: add its stage to stages to convert it"
    return mismatch(site.conv, site.names, site.stage, config)


def _sites(model: nn.Module, modules: Mapping[str, nn.Module], measured: Measured) -> list[Site]:
    by_name = stage_by_name(model)

    def stage(name: str, conv: nn.Conv2d) -> int | None:
        if by_name is not None:
            return by_name[name]
        stride = measured.strides.get(conv)
        return None if stride is None else stage_by_stride(stride)

    names = defaultdict(list)
    for name, module in modules.items():
        # CondConv2d has the attributes of a convolution; it is refused with its reason.
        if isinstance(module, nn.Conv2d | CondConv2d):
            names[cast("nn.Conv2d", module)].append(name)
    return [Site(conv=conv, names=tuple(n), stage=stage(n[0], conv)) for conv, n in names.items()]


def _is_deep(site: Site) -> bool:
    return site.stage is not None and site.stage >= _FIRST_DEEP_STAGE


def _every_nth_block(model: nn.Module, sites: list[Site], every: int) -> list[Site]:
    blocks: defaultdict[int | None, list[str]] = defaultdict(list)
    chosen = []
    for site in sites:
        of_stage, block = blocks[site.stage], block_of(site.names[0], model)
        if block not in of_stage:
            of_stage.append(block)
        if of_stage.index(block) % every == 0:
            chosen.append(site)
    return chosen


def _image_readers(model: nn.Module, modules: Mapping[str, nn.Module], measured: Measured) -> set[nn.Conv2d]:
    """Return the convolutions that timm names, or else those that the forward pass found."""
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    names = [find_name(modules, name) for name in ([first] if isinstance(first, str) else first)]
    named = {cast("nn.Conv2d", modules[name]) for name in names if name is not None}
    return named or measured.readers


def _check_model(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    if isinstance(model, nn.Conv2d):
        raise ValueError(f"expected a network that contains convolutions, got the convolution {model}")
    done = [name for name, module in modules.items() if isinstance(module, DeformConv2d)]
    if done:
        raise ValueError(
            f"{type(model).__name__} is already converted: inject_ runs once, and {_some(done)} "
            "are deformable; start from the plain network, with all layers to convert in one config"
        )


def _check_stages(model: nn.Module, sites: Iterable[Site], config: DCNConfig, measured: Measured) -> None:
    if config.stages is None:
        return
    stages = sorted({site.stage for site in sites if site.stage is not None})
    if not stages:
        why = "has neither a timm feature_info nor an input_size"
        cure = "pass input_size=(C, H, W), or use stages=None"
        if measured.size is not None:
            why = (
                f"has no timm feature_info and doesn't run on a meta tensor of {measured.size}: {measured.failure}"
            )
            cure = "use stages=None, with include and exclude"
        raise ValueError(
            f"the stages of {type(model).__name__} are unknown, as it {why}, got {config.stages=}; {cure}"
        )
    missing = [stage for stage in config.stages if stage not in stages]
    if missing:
        raise ValueError(f"{type(model).__name__} has the stages {stages}, but not {missing}, got {config.stages=}")


def _check_patterns(modules: Mapping[str, nn.Module], config: DCNConfig) -> None:
    names = [name for name in modules if name]
    for kind, patterns in (("include", config.include), ("exclude", config.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
                raise ValueError(
                    f"no module matches {kind} pattern {pattern!r}; close names: {', '.join(close) or '-'}"
                )


def _nothing(model: nn.Module, reasons: Mapping[Site, str | None], refusals: Mapping[Site, str]) -> str:
    # Reasons from the config come first: the user can change those.
    groups = defaultdict(list)
    for site, reason in (*reasons.items(), *refusals.items()):
        groups[reason].append(site.names[0])
    lines = [f"  {reason}: {_some(names)}" for reason, names in list(groups.items())[:8]]
    return "\n".join([f"no convolution of {type(model).__name__} can be replaced:", *(lines or ["  it has none"])])


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
