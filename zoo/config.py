"""What to replace (``DCNConfig``) and what was replaced (``Replacement``, ``Injection``)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DCNConfig:
    """Which convolutions become deformable, and how.

    Attributes:
        stages: Stages to convert, or None for the whole network. Stage s has stride 2^(s + 1) in the undilated
            network: (2, 3, 4) are the strides 8, 16 and 32.
        include: Globs over module names, such as ``"layer4.*.conv2"``; one has to match.
        exclude: Globs over module names; none may match.
        offset_groups: Groups of channels with offsets of their own.
        modulated: Whether samples are weighted by a predicted mask (v2) or not (v1).
        offset_bound: Keep offsets within ± this many pixels.

    Raises:
        ValueError: For a value out of range, or no stage or include pattern at all.
        TypeError: For stages that are not integers, patterns that are not strings, or offset_groups that is
            not an integer.
    """

    stages: tuple[int, ...] | None = (2, 3, 4)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    offset_groups: int = 1
    modulated: bool = True
    offset_bound: float | None = None

    def __post_init__(self) -> None:
        if self.stages is not None:
            object.__setattr__(self, "stages", _as_tuple("stages", self.stages, int))
        object.__setattr__(self, "include", _as_tuple("include", self.include, str))
        object.__setattr__(self, "exclude", _as_tuple("exclude", self.exclude, str))
        if self.stages == ():
            raise ValueError(f"expected at least one stage, or None for all, got {self.stages=}")
        if not self.include:
            raise ValueError(f'expected at least one include pattern, such as "*", got {self.include=}')
        if not _is_a(self.offset_groups, int):
            raise TypeError(f"expected an integer, got {self.offset_groups=}")
        if self.offset_groups < 1:
            raise ValueError(f"expected a positive number of groups, got {self.offset_groups=}")
        if self.offset_bound is not None and not 0 < self.offset_bound < math.inf:
            raise ValueError(f"expected a positive, finite bound, in pixels, or None, got {self.offset_bound=}")


def _as_tuple(name: str, values: object, kind: type) -> tuple[object, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"expected a sequence of {kind.__name__} for {name}, got {values!r}")
    items = tuple(values)
    for item in items:
        if not _is_a(item, kind):
            raise TypeError(f"expected a sequence of {kind.__name__} for {name}, got {item!r} in {items}")
    return items


def _is_a(value: object, kind: type) -> bool:
    """Tell whether a value is of a kind; here a bool is no integer."""
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One convolution and the layer in its place.

    Attributes:
        fqn: Its name in the network; the first one if it has several.
        stage: Its stage, None where the network names none for it.
        old: The convolution's ``repr``.
        new: The layer's ``repr``.
        params_before: Parameters of the convolution.
        params_after: Parameters of the layer, the offset predictor's included.
        flops_before: FLOPs (2 × multiply-adds) for one image; None where the network could not be run.
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
    """What a conversion does to a network.

    Attributes:
        replacements: The layers, in the order of the network's definition.
        params_before: Parameters of the network.
        flops_before: FLOPs (2 × multiply-adds of convolutions and matrix products) of the network for one
            image, or None where it could not be run.
        input_size: [C, H, W] of that image.
    """

    replacements: tuple[Replacement, ...]
    params_before: int
    flops_before: int | None = None
    input_size: tuple[int, int, int] | None = None

    @property
    def params_after(self) -> int:
        """Parameters of the converted network."""
        return self.params_before + sum(r.params_after - r.params_before for r in self.replacements)

    @property
    def flops_after(self) -> int | None:
        """FLOPs of the converted network for one image, or None where it could not be run."""
        if self.flops_before is None:
            return None
        return self.flops_before + sum((r.flops_after or 0) - (r.flops_before or 0) for r in self.replacements)
