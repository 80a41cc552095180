"""What to replace, and by what: ``DCNConfig``."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import UnionType

from torch import nn

from dcn_ops.messages import shown
from zoo.parts import BACKBONE, PARTS

KINDS = ("dense", "grouped", "depthwise", "pooling")
OPERATORS = ("v2", "v3", "v4")
TOWERS = ("all", "last")
_SEQUENCES = {"parts": str, "stages": int, "kinds": str, "kernels": int, "include": str, "exclude": str}


@dataclass(frozen=True, kw_only=True)
class DCNConfig:
    """Which convolutions become deformable, and how.

    Attributes:
        parts: Parts of a detector or a segmenter to convert, some of "backbone", "neck", "decoder" and "head". A
            network without a backbone inside is one backbone.
        stages: Stages of the backbone to convert; other parts have none. Stage s has stride 2^(s + 1) in the
            undilated network: (2, 3, 4) are the strides 8, 16 and 32, c3 to c5 of the detection papers. None
            converts those of (2, 3, 4) that the backbone has, or all of it if it has none.
        kinds: Kinds to convert, some of "dense", "grouped", "depthwise" and, for v3 and v4, "pooling".
        kernels: Kernel sizes to convert, by their larger side. None converts all of at least 3.
        include: Globs over module names, such as ``"layer4.*.conv2"``; at least one has to match.
        exclude: Globs over module names; none may match.
        where: A function of name and convolution; convolutions for which it returns True are converted.
        every: Convert every n-th block of a stage, starting with its first.
        towers: In decoder and head, convert "all" convolutions, or the "last" ones: those whose results go only to
            layers that compute an output of the network, as the last one of each of FCOS's towers.
        output_layers: Whether layers of decoder and head that compute an output of the network, such as FCOS's
            cls_logits, are converted too.
        stem: Whether convolutions that read the image are converted too.
        operator: "v2" makes convolutions deformable, also as v1 (see ``modulated``). "v3" and "v4" replace
            depthwise convolutions and average poolings by DCNv3 and DCNv4, which have no filters.
        keep_output: Refuse layers whose replacement changes the network's output, as most by v3 and v4 do.
        offset_groups: Number of channel groups with their own offsets; v3 and v4 have groups of 16 channels where
            this is 1 and there is no width.
        offset_group_width: Channels of such a group, instead of the number of groups: for layers of different
            widths.
        modulated: Whether a predicted mask weights the samples (v2) or not (v1).
        offset_bound: Limits offsets to ± this many pixels.
        separable_predictor: Whether a depthwise and a 1x1 convolution predict the offsets instead of a dense one.
            None: only for depthwise convolutions and kernel sizes above 3.

    Raises:
        ValueError: If a value is out of range, or parts, stages, kinds, kernels or include are empty.
        TypeError: If a value has another type.
    """

    parts: tuple[str, ...] = (BACKBONE,)
    stages: tuple[int, ...] | None = None
    kinds: tuple[str, ...] = KINDS
    kernels: tuple[int, ...] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    where: Callable[[str, nn.Conv2d], bool] | None = None
    every: int = 1
    towers: str = "all"
    output_layers: bool = False
    stem: bool = False
    operator: str = "v2"
    keep_output: bool = True
    offset_groups: int = 1
    offset_group_width: int | None = None
    modulated: bool = True
    offset_bound: float | None = None
    separable_predictor: bool | None = None

    def __post_init__(self) -> None:
        for name, kind in _SEQUENCES.items():
            value = getattr(self, name)
            if value is not None or name not in ("stages", "kernels"):
                object.__setattr__(self, name, _as_tuple(name, value, kind))
        self._check_place()
        _check_positive("every", self.every)
        _check_positive("offset_groups", self.offset_groups)
        if self.offset_group_width is not None:
            _check_positive("offset_group_width", self.offset_group_width)
        if self.offset_groups != 1 and self.offset_group_width is not None:
            width = self.offset_group_width
            raise ValueError(f"expected one of offset_groups={self.offset_groups} and offset_group_width={width}")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"expected a function of name and convolution, or None, got where={self.where!r}")
        self._check_layer()

    def _check_place(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"expected some of the parts {PARTS}, got parts={self.parts!r}")
        if self.stages == ():
            raise ValueError(f"expected at least one stage, or None for the deep ones, got stages={self.stages!r}")
        if self.stages is not None and BACKBONE not in self.parts:
            raise ValueError(
                f"only the backbone has stages, got stages={self.stages!r} and parts={self.parts!r}; use include"
            )
        if self.kernels == ():
            raise ValueError(f"expected at least one kernel size, or None for all, got kernels={self.kernels!r}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"expected some of the kinds {KINDS}, got kinds={self.kinds!r}")
        if not self.include:
            raise ValueError(f'expected at least one include pattern, such as "*", got include={self.include!r}')
        if self.towers not in TOWERS:
            raise ValueError(f"expected one of {TOWERS}, got towers={self.towers!r}")
        for name in ("output_layers", "stem", "keep_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"expected True or False, got {name}={shown(getattr(self, name))}")

    def _check_layer(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"expected one of {OPERATORS}, got operator={self.operator!r}")
        of_v2 = {"modulated": True, "offset_bound": None, "separable_predictor": None}
        changed = [name for name, default in of_v2.items() if getattr(self, name) is not default]
        if self.operator != "v2" and changed:
            raise ValueError(
                f"only operator='v2' has {', '.join(changed)}, got operator={self.operator!r}; leave them out"
            )
        if not isinstance(self.modulated, bool):
            raise TypeError(f"expected True or False, got modulated={self.modulated!r}")
        if not isinstance(self.separable_predictor, bool | None):
            raise TypeError(f"expected True, False or None, got separable_predictor={self.separable_predictor!r}")
        if self.offset_bound is not None and not _is_a(self.offset_bound, int | float):
            raise TypeError(f"expected a number of pixels, or None, got offset_bound={self.offset_bound!r}")
        if self.offset_bound is not None and not 0 < self.offset_bound < math.inf:
            raise ValueError(
                f"expected a positive, finite bound, in pixels, or None, got offset_bound={self.offset_bound!r}"
            )


def _check_positive(name: str, value: object) -> None:
    if not _is_a(value, int):
        raise TypeError(f"expected an integer, got {name}={shown(value)}")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"expected a positive integer, got {name}={shown(value)}")


def _as_tuple(name: str, values: object, kind: type) -> tuple[object, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        cure = f"; write {name}=({shown(values)},)" if _is_a(values, kind) else ""
        raise TypeError(f"expected a sequence of {kind.__name__} for {name}, got {shown(values)}{cure}")
    items = tuple(values)
    for item in items:
        if not _is_a(item, kind):
            raise TypeError(
                f"expected a sequence of {kind.__name__} for {name}, got {shown(item)} in {shown(items)}"
            )
    return items


def _is_a(value: object, kind: type | UnionType) -> bool:
    """Tell whether a value is of a kind; a bool is no integer here."""
    return isinstance(value, kind) and not isinstance(value, bool)
