"""What to replace (``DCNConfig``) and what was replaced (``Replacement``, ``Injection``)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import UnionType

from torch import nn

KINDS = ("dense", "grouped", "depthwise")


@dataclass(frozen=True, kw_only=True)
class DCNConfig:
    """Which convolutions become deformable, and how.

    Attributes:
        stages: Stages to convert. Stage s has stride 2^(s + 1) in the undilated network: (2, 3, 4) are the strides
            8, 16 and 32, c3 to c5 of the detection papers. None converts those of (2, 3, 4) that the network has,
            or everything if it has none.
        kinds: Kinds to convert, some of "dense", "grouped" and "depthwise".
        kernels: Kernel sizes to convert, by their larger side. None converts all of at least 3.
        include: Globs over module names, such as ``"layer4.*.conv2"``; at least one has to match.
        exclude: Globs over module names; none may match.
        where: A function of name and convolution; convolutions for which it returns True are converted.
        every: Convert every n-th block of a stage, starting with its first.
        offset_groups: Number of channel groups with their own offsets.
        offset_group_width: Channels of such a group, instead of the number of groups: for layers of different
            widths.
        modulated: Whether a predicted mask weights the samples (v2) or not (v1).
        offset_bound: Limits offsets to ± this many pixels.
        separable_predictor: Whether a depthwise and a 1x1 convolution predict the offsets instead of a dense one.
            None: only for depthwise convolutions and kernel sizes above 3.
            None: for depthwise convolutions and kernels above 3.

    Raises:
        ValueError: If a value is out of range, or stages, kinds, kernels or include are empty.
        TypeError: If a value has another type.
    """

    stages: tuple[int, ...] | None = None
    kinds: tuple[str, ...] = KINDS
    kernels: tuple[int, ...] | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    where: Callable[[str, nn.Conv2d], bool] | None = None
    every: int = 1
    offset_groups: int = 1
    offset_group_width: int | None = None
    modulated: bool = True
    offset_bound: float | None = None
    separable_predictor: bool | None = None

    def __post_init__(self) -> None:
        for name, kind in (("stages", int), ("kinds", str), ("kernels", int), ("include", str), ("exclude", str)):
            value = getattr(self, name)
            if value is not None or name not in ("stages", "kernels"):
                object.__setattr__(self, name, _as_tuple(name, value, kind))
        if self.stages == ():
            raise ValueError(f"expected at least one stage, or None for the deep ones, got {self.stages=}")
        if self.kernels == ():
            raise ValueError(f"expected at least one kernel size, or None for all, got {self.kernels=}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"expected some of the kinds {KINDS}, got {self.kinds=}")
        if not self.include:
            raise ValueError(f'expected at least one include pattern, such as "*", got {self.include=}')
        _check_positive("every", self.every)
        _check_positive("offset_groups", self.offset_groups)
        if self.offset_group_width is not None:
            _check_positive("offset_group_width", self.offset_group_width)
        if self.offset_groups != 1 and self.offset_group_width is not None:
            raise ValueError(f"expected one of {self.offset_groups=} and {self.offset_group_width=}")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"expected a function of name and convolution, or None, got {self.where=}")
        self._check_layer()

    def _check_layer(self) -> None:
        if not isinstance(self.modulated, bool):
            raise TypeError(f"expected True or False, got {self.modulated=}")
        if not isinstance(self.separable_predictor, bool | None):
            raise TypeError(f"expected True, False or None, got {self.separable_predictor=}")
        if self.offset_bound is not None and not _is_a(self.offset_bound, int | float):
            raise TypeError(f"expected a number of pixels, or None, got {self.offset_bound=}")
        if self.offset_bound is not None and not 0 < self.offset_bound < math.inf:
            raise ValueError(f"expected a positive, finite bound, in pixels, or None, got {self.offset_bound=}")


def _check_positive(name: str, value: object) -> None:
    if not _is_a(value, int):
        raise TypeError(f"expected an integer, got {name}={value!r}")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"expected a positive integer, got {name}={value!r}")


def _as_tuple(name: str, values: object, kind: type) -> tuple[object, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"expected a sequence of {kind.__name__} for {name}, got {values!r}")
    items = tuple(values)
    for item in items:
        if not _is_a(item, kind):
            raise TypeError(f"expected a sequence of {kind.__name__} for {name}, got {item!r} in {items}")
    return items


def _is_a(value: object, kind: type | UnionType) -> bool:
    """Tell whether a value is of a kind; a bool is no integer here."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One convolution and the layer that replaces it.

    Attributes:
        fqn: Its name in the network; the first one if it has several.
        stage: Its stage, or None if it is unknown.
        old: The convolution's ``repr``.
        new: The layer's ``repr``.
        params_before: Parameters of the convolution.
        params_after: Parameters of the layer, the offset predictor's included.
        flops_before: FLOPs (2 × multiply-adds) for one image; None if the network could not be run.
        flops_after: The same for the layer: convolution, offset predictor and bilinear sampling.
    """

    fqn: str
    stage: int | None
    old: str
    new: str
    params_before: int
    params_after: int
    flops_before: int | None = None
    flops_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class Injection:
    """The result of a conversion.

    Attributes:
        replacements: The layers, in the order of the network's definition.
        params_before: Parameters of the network.
        flops_before: FLOPs (2 × multiply-adds of convolutions and matrix products) of the network for one
            image; None if it could not be run.
        input_size: [C, H, W] of that image.
        refused: Why other convolutions, with kernel sizes of at least 3, can't become deformable, by name.
    """

    replacements: tuple[Replacement, ...]
    params_before: int
    flops_before: int | None = None
    input_size: tuple[int, int, int] | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def params_after(self) -> int:
        """Parameters of the converted network."""
        return self.params_before + sum(r.params_after - r.params_before for r in self.replacements)

    @property
    def flops_after(self) -> int | None:
        """FLOPs of the converted network for one image; None if it could not be run."""
        if self.flops_before is None:
            return None
        return self.flops_before + sum((r.flops_after or 0) - (r.flops_before or 0) for r in self.replacements)


@dataclass(frozen=True, kw_only=True)
class Folding:
    """The result of ``fold_``. A layer with several names has its first name here.

    Attributes:
        folded: Names of the layers that are plain convolutions again.
        kept: Names of the layers that stay deformable, each with the reason and what was measured.
        params_before: Parameters of the network.
        params_after: Parameters of the network without the folded layers' predictors.
    """

    folded: tuple[str, ...]
    kept: dict[str, str]
    params_before: int
    params_after: int
