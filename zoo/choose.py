"""The convolutions of a network that configs select, and the errors if a selection makes no sense."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from dcn_ops import DeformConv2d
from zoo import mixers
from zoo.config import DCNConfig
from zoo.convert import sides
from zoo.forward import Measured
from zoo.parts import BACKBONE, DECODER, HEAD, is_composite
from zoo.select import block_of, mismatch, refusal, role
from zoo.sites import Site, find_sites

_FIRST_DEEP_STAGE = 2  # stride 8


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The convolutions to replace, in order of definition, and why no config can replace the others."""

    sites: dict[Site, DCNConfig]
    refused: dict[str, str]  # only kernel sizes of at least 3


def choose(model: nn.Module, configs: Sequence[DCNConfig], parts: Mapping[str, str], measured: Measured) -> Choice:
    """Return the convolutions to replace, each with the first config that selects it.

    Raises:
        ValueError: If the model is itself a convolution or already converted, if it has no such part or stage, if a
            pattern matches no module, or if a config selects no convolution.
    """
    _check_model(model, configs, parts)
    sites = find_sites(model, parts, measured)
    chosen: dict[Site, DCNConfig] = {}
    refused: dict[Site, str] = {}
    for config in configs:
        _check_parts(model, parts, config)
        _check_stages(model, sites, config, measured)
        _check_patterns(parts, config)
        selected, refusals = _select(model, sites, config)
        if chosen.keys() >= set(selected):
            raise ValueError(f"earlier configs of the list select all convolutions of {config}; leave it out")
        chosen |= {site: config for site in selected if site not in chosen}
        refused |= refusals
    return Choice(
        sites={site: chosen[site] for site in sites if site in chosen},
        refused={
            site.names[0]: refused[site]
            for site in sites
            if site in refused and site not in chosen and max(sides(site.layer)) >= 3
        },
    )


def _select(model: nn.Module, sites: Iterable[Site], config: DCNConfig) -> tuple[list[Site], dict[Site, str]]:
    """Return the convolutions that a config selects, and why others of its parts can't be replaced."""
    poolings = config.operator != "v2"
    inside = [s for s in sites if s.part in config.parts and (poolings or not isinstance(s.layer, nn.AvgPool2d))]
    found = {site: _refusal(site, config) for site in inside}
    refusals = {site: reason for site, reason in found.items() if reason is not None}
    able = [site for site in inside if site not in refusals]
    only_deep = config.stages is None and any(_is_deep(site) for site in able)
    reasons = {site: _why_not(site, config, only_deep) for site in able}
    chosen = [site for site in able if reasons[site] is None]
    if not chosen:
        raise ValueError(_nothing(model, config, reasons, refusals))
    return _every_nth_block(model, chosen, config.every) if config.every > 1 else chosen, refusals


def _refusal(site: Site, config: DCNConfig) -> str | None:
    """Tell why the config's operator can't replace a layer; None if it can."""
    conditions: dict[str, Any] = {
        "reads_image": site.reads_image and not config.stem,
        "computes_output": site.computes_output and not config.output_layers,
        "positions": site.positions,
    }
    if config.operator == "v2":
        return refusal(cast("nn.Conv2d", site.layer), **conditions)
    reason = mixers.unfit(site.layer, config.operator) or role(**conditions)
    if reason is None and site.channels is None:
        return "its channels are unknown, as the network doesn't run; pass input_size"
    if reason is None and config.keep_output:
        why = mixers.change(site.layer, config)
        one = "" if config.operator == "v3" else "offset_group_width=1 keeps it, "
        return why and f"would change the output ({why}); {one}keep_output=False allows it"
    return reason


def _why_not(site: Site, config: DCNConfig, only_deep: bool) -> str | None:
    if only_deep and site.part == BACKBONE and not _is_deep(site):
        return "shallow: add its stage to stages to convert it"
    if config.towers == "last" and site.part in (DECODER, HEAD) and not (site.feeds_output or site.computes_output):
        return "not the last of its tower, with towers='last'"
    where = config if site.part == BACKBONE else replace(config, stages=None)
    return mismatch(cast("nn.Conv2d", site.layer), site.names, site.stage, where)


def _is_deep(site: Site) -> bool:
    return site.stage is not None and site.stage >= _FIRST_DEEP_STAGE


def _every_nth_block(model: nn.Module, sites: list[Site], every: int) -> list[Site]:
    blocks: defaultdict[tuple[str, int | None], list[str]] = defaultdict(list)
    chosen = []
    for site in sites:
        of_stage, block = blocks[site.part, site.stage], block_of(site.names[0], model)
        if block not in of_stage:
            of_stage.append(block)
        if of_stage.index(block) % every == 0:
            chosen.append(site)
    return chosen


def _check_model(model: nn.Module, configs: Sequence[DCNConfig], parts: Mapping[str, str]) -> None:
    if isinstance(model, nn.Conv2d):
        raise ValueError(f"expected a network that contains convolutions, got the convolution {model}")
    wanted = {part for config in configs for part in config.parts}
    done = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, DeformConv2d | mixers.DeformMixer2d) and parts[name] in wanted
    ]
    if done:
        raise ValueError(
            f"{type(model).__name__} is already converted: inject_ runs once, and {_some(done)} "
            "are deformable; start from the plain network, with all layers to convert in one config"
        )


def _check_parts(model: nn.Module, parts: Mapping[str, str], config: DCNConfig) -> None:
    found = dict.fromkeys(parts.values())
    missing = [part for part in config.parts if part not in found]
    if not missing:
        return
    cure = "name the layers with include instead"
    if not is_composite(parts):
        cure = "it has no module with timm's feature_info, or called backbone or encoder, and counts as a backbone"
    raise ValueError(
        f"{type(model).__name__} has the parts {[*found]}, but not {missing}, got parts={config.parts!r}; {cure}"
    )


def _check_stages(model: nn.Module, sites: Iterable[Site], config: DCNConfig, measured: Measured) -> None:
    if config.stages is None:
        return
    stages = sorted({site.stage for site in sites if site.stage is not None})
    if not stages:
        why = "has neither a timm feature_info nor an input_size"
        cure = "pass input_size=(C, H, W), or use stages=None"
        if measured.size is not None:
            why = f"has no timm feature_info and doesn't run on an image of {measured.size}: {measured.failure}"
            cure = "use stages=None, with include and exclude"
        raise ValueError(
            f"the stages of {type(model).__name__} are unknown, as it {why}, got stages={config.stages!r}; {cure}"
        )
    missing = [stage for stage in config.stages if stage not in stages]
    if missing:
        cure = "" if len(stages) > 1 else "; if the others are of attention, take a network of convolutions"
        raise ValueError(
            f"{type(model).__name__} has convolutions in the stages {stages}, but none in {missing}, got "
            f"stages={config.stages!r}{cure}"
        )


def _check_patterns(modules: Iterable[str], config: DCNConfig) -> None:
    names = [name for name in modules if name]
    for kind, patterns in (("include", config.include), ("exclude", config.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
                raise ValueError(
                    f"no module matches {kind} pattern {pattern!r}; close names: {', '.join(close) or '-'}"
                )


def _nothing(
    model: nn.Module, config: DCNConfig, reasons: Mapping[Site, str | None], refusals: Mapping[Site, str]
) -> str:
    # Reasons from the config come first: the user can change those.
    groups = defaultdict(list)
    first = {site: reason for site, reason in refusals.items() if "keep_output" in reason}
    for site, reason in {**reasons, **first, **refusals}.items():
        groups[reason].append(site.names[0])
    lines = [f"  {reason}: {_some(names)}" for reason, names in list(groups.items())[:8]]
    kinds = "convolution" if config.operator == "v2" else "convolution or average pooling"
    return "\n".join([f"no {kinds} of {type(model).__name__} can be replaced:", *(lines or ["  it has none"])])


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
