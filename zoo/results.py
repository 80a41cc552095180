"""What was converted (``Replacement``, ``PartCost``, ``Injection``) and folded back (``Folding``)."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """One layer of a network and the deformable layer that replaces it.

    Attributes:
        fqn: Its name in the network; the first one if it has several.
        part: Its part: "backbone", "neck", "decoder" or "head".
        stage: Its stage in the backbone, or None if it is unknown.
        old: The convolution's ``repr``.
        new: The layer's ``repr``.
        params_before: Parameters of the convolution.
        params_after: Parameters of the layer, the offset predictor's included.
        flops_before: FLOPs (2 × multiply-adds) for one image; None if the network could not be run.
        flops_after: The same for the layer: convolution, offset predictor and bilinear sampling.
        changes_output: Why the network's output changes, which needed ``keep_output=False``; None if it doesn't.
    """

    fqn: str
    part: str = "backbone"
    stage: int | None
    old: str
    new: str
    params_before: int
    params_after: int
    flops_before: int | None = None
    flops_after: int | None = None
    changes_output: str | None = None


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Parameters and FLOPs of one part of a network.

    Attributes:
        name: "backbone", "neck", "decoder" or "head".
        replaced: Number of its layers that become deformable.
        params_before: Its parameters.
        params_after: Its parameters after the conversion.
        flops_before: Its FLOPs for one image; None if the network could not be run.
        flops_after: The same after the conversion.
    """

    name: str
    replaced: int
    params_before: int
    params_after: int
    flops_before: int | None
    flops_after: int | None


@dataclass(frozen=True, kw_only=True)
class Injection:
    """The result of a conversion.

    Attributes:
        replacements: The layers, in the order of the network's definition.
        params_before: Parameters of the network.
        flops_before: FLOPs (2 × multiply-adds of convolutions and matrix products) of the network for one
            image; None if it could not be run.
        input_size: [C, H, W] of that image.
        seen_size: [H, W] that the backbone of a detector gets after resizing; None if it is that of the image.
        refused: Why other convolutions, with kernel sizes of at least 3, can't become deformable, by name.
        params_by_part: Parameters of each part of the network.
        flops_by_part: FLOPs of each part for one image; empty if the network could not be run.
    """

    replacements: tuple[Replacement, ...] = field(repr=False)  # pages in a notebook
    params_before: int
    flops_before: int | None = None
    input_size: tuple[int, int, int] | None = None
    seen_size: tuple[int, int] | None = None
    refused: dict[str, str] = field(default_factory=dict, repr=False)
    params_by_part: dict[str, int] = field(default_factory=dict, repr=False)
    flops_by_part: dict[str, int] = field(default_factory=dict, repr=False)

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

    @property
    def parts(self) -> dict[str, PartCost]:
        """The parts of the network, by name, each with its cost."""
        return {name: self._part(name) for name in self.params_by_part}

    def _part(self, name: str) -> PartCost:
        inside = [r for r in self.replacements if r.part == name]
        params = self.params_by_part[name]
        flops = None if self.flops_before is None else self.flops_by_part.get(name, 0)
        return PartCost(
            name=name,
            replaced=len(inside),
            params_before=params,
            params_after=params + sum(r.params_after - r.params_before for r in inside),
            flops_before=flops,
            flops_after=None
            if flops is None
            else flops + sum((r.flops_after or 0) - (r.flops_before or 0) for r in inside),
        )


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
