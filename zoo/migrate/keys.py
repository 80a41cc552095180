"""The deformable layers of a checkpoint, by the names and shapes of its tensors.

Legend: C input channels, K taps of the kernel, G offset groups.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from zoo.convert import LayerArguments

# What the sources append to the name of a layer for its predictor: the DCNv2 forks, EDVR and YOLACT++; mmcv and
# BasicSR; detectron2 and mmcv's first version, where it is the layer's neighbour.
_PREDICTORS = (".conv_offset_mask", ".conv_offset", "_offset")


# What only one source has among its names; of several the first counts.
_LIBRARIES = (
    (r"(^|\.)res2\.0\.conv1\.", "detectron2"),
    (r"(^|\.)layers\.0\.0\.conv1\.", "YOLACT++"),
    (r"^(decode_head|auxiliary_head)\.", "mmsegmentation"),
    (r"^(roi_head|rpn_head|bbox_head)\.", "mmdetection"),
    (r"\.conv_offset_mask\.", "a DCNv2 fork"),
    (r"\.conv_offset\.(weight|bias)$", "mmcv or BasicSR"),
    (r"_offset\.(weight|bias)$", "mmcv before version 2"),
    (r"", "torchvision"),
)


def library(names: Iterable[str]) -> str:
    """Return the source that has tensors of these names."""
    listed = list(names)
    return next(source for pattern, source in _LIBRARIES if any(re.search(pattern, name) for name in listed))


def layer_arguments(offset_groups: int, modulated: bool) -> LayerArguments:
    """Return the arguments of a layer of the sources: dense predictor, no bound, masks of a plain sigmoid."""
    return {
        "offset_groups": offset_groups,
        "modulated": modulated,
        "offset_bound": None,
        "separable_predictor": False,
        "predict_offsets": True,
        "mask_scale": 1.0,
    }


def channels_of(modulated: bool, kernel: Sequence[int]) -> int:
    """Return the channels that are predicted for an offset group."""
    return (3 if modulated else 2) * kernel[0] * kernel[1]


def find_layers(
    weights: Mapping[str, Tensor], modulated: bool | None = None
) -> tuple[dict[str, LayerArguments], dict[str, str]]:
    """Return the layers that predict their offsets, and how the keys of their predictors are called here.

    Args:
        weights: A source's tensors by name.
        modulated: Whether layers have a mask, for those whose shapes allow both. That needs a C that 3 divides:
            54 channels for 9 taps are 2 groups with masks or 3 without.

    Raises:
        ValueError: For a predictor whose channels fit no layer, or that is ambiguous.
    """
    layers: dict[str, LayerArguments] = {}
    renamed: dict[str, str] = {}
    for name, predictor, ending in _predictors(weights):
        found = _layer(name, weights[f"{predictor}.weight"], ending, modulated)
        if found is not None:
            layers[name] = found
            renamed |= {f"{predictor}.{part}": f"{name}.offset_{part}" for part in ("weight", "bias")}
    return layers, renamed


def _predictors(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Yield name of the layer, name of its predictor and what the source appended."""
    for key, weight in weights.items():
        predictor = key.removesuffix(".weight")
        ending = next((ending for ending in _PREDICTORS if predictor.endswith(ending)), None)
        if ending is None or predictor == key or weight.ndim != 4 or f"{predictor}.bias" not in weights:
            continue
        name = predictor.removesuffix(ending)
        # The filters of the layer itself; GuidedAnchor's conv_offset belongs to no layer.
        filters = weights.get(f"{name}.weight")
        if filters is not None and filters.ndim == 4 and filters.shape[2:] == weight.shape[2:]:
            yield name, predictor, ending


def _layer(name: str, predictor: Tensor, ending: str, modulated: bool | None) -> LayerArguments | None:
    outputs, channels, *kernel = predictor.shape
    taps = kernel[0] * kernel[1]
    possible = []
    for masked in (True, False):
        groups, rest = divmod(outputs, channels_of(masked, kernel))
        if groups and not rest and not channels % groups:
            possible.append(layer_arguments(groups, masked))
    if ending == ".conv_offset_mask":
        possible = [arguments for arguments in possible if arguments["modulated"]]
    if len(possible) == 2 and modulated is not None:
        possible = [arguments for arguments in possible if arguments["modulated"] == modulated]
    if len(possible) == 2:
        one, two = (arguments["offset_groups"] for arguments in possible)
        raise ValueError(
            f"{name}: {outputs} channels for {taps} taps are {one} offset groups with masks (v2) or {two} without "
            "(v1); pass modulated=True or False"
        )
    if not possible and ending != "_offset":  # a neighbour of that name may be anything
        raise ValueError(
            f"{name}: expected 2 or 3 predicted channels for each of {taps} taps and each offset group, where the "
            f"groups divide {channels} channels, got {outputs}"
        )
    return possible[0] if possible else None
