"""Find timm's names in a network, and the stage of each of its modules."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import nn


def find_name(names: Iterable[str], timm_name: str) -> str | None:
    """Return the module that timm means: features_only renames or wraps the modules that its metadata name.

    FeatureListNet makes "stages.0" a "stages_0", FeatureHookNet puts the network under "body",
    FeatureGetterNet under "model".
    """
    flat = timm_name.replace(".", "_")
    wanted = {flat, f"body_{flat}", f"model_{flat}"}
    return next((name for name in names if name.replace(".", "_") in wanted), None)


def feature_stages(model: nn.Module) -> dict[str, int]:
    """Return the modules at which a stage ends, in order, each with its stage s of stride 2^(s + 1).

    The number follows from the index in ``feature_info``, so a dilated network keeps its stages. The result is
    empty without ``feature_info``. It lacks the stages that features_only removed.
    """
    infos = _feature_infos(model)
    if not infos:
        return {}
    first = round(math.log2(infos[0]["reduction"])) - 1
    names = _names(model)
    found = [(find_name(names, info["module"]), stage) for stage, info in enumerate(infos, start=first)]
    return {name: stage for name, stage in found if name is not None}


def stage_by_name(model: nn.Module) -> dict[str, int | None] | None:
    """Map each name to its stage: the first stage that ends at or after it, in order of definition.

    None if ``feature_info`` is not enough: a stage is not the output of one module, as in HRNet, or a stage
    skips a stride, as in hybrids.
    """
    ends = feature_stages(model)
    infos = _feature_infos(model)
    if not ends or not _is_a_chain(infos, len(ends)):
        return None
    names = _names(model)
    order = []
    for end, stage in ends.items():
        last = max(i for i, name in enumerate(names) if name == end or name.startswith(f"{end}."))
        order.append((last, stage))
    return {name: next((stage for last, stage in order if i <= last), None) for i, name in enumerate(names)}


def stage_by_stride(stride: float) -> int:
    """Return the stage s whose stride 2^(s + 1) is nearest."""
    return max(0, round(math.log2(stride)) - 1)


def _is_a_chain(infos: list[dict[str, Any]], found: int) -> bool:
    """Tell whether the stages found are the first ones, each half as large as the one before (or dilated)."""
    reductions = [info["reduction"] for info in infos[:found]]
    return all(later in (earlier, 2 * earlier) for earlier, later in pairwise(reductions))


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules(remove_duplicate=False)]


def _feature_infos(model: nn.Module) -> list[dict[str, Any]]:
    infos = getattr(model, "feature_info", None) or []
    # A network of features_only has a FeatureInfo, which holds the list.
    return list(getattr(infos, "info", infos))
