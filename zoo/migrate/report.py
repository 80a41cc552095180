"""The result of ``load_``."""

from dataclasses import dataclass, field

from torch import Tensor

from zoo.convert import LayerArguments


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What ``load_`` did.

    Attributes:
        source: Whose names the checkpoint has, such as "mmdetection".
        layers: The deformable layers, with their arguments.
        loaded: The network's tensors that were loaded.
        renamed: The names of those in the checkpoint, where they are others.
        kept: The network's tensors that the checkpoint doesn't have, such as a new classifier.
        rest: The tensors of the checkpoint that were left out: neck and heads. Those of predictors have this
            library's names, ``offset_weight`` and ``offset_bias``.
        notes: What else there is to know, such as the order of the colours.
    """

    source: str
    layers: dict[str, LayerArguments]
    loaded: tuple[str, ...]
    renamed: dict[str, str]
    kept: tuple[str, ...]
    rest: dict[str, Tensor] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"source: {self.source}",
            f"loaded: {len(self.loaded)} tensors, {len(self.renamed)} of them renamed",
            f"deformable: {len(self.layers)} layers: {', '.join(self.layers) or '-'}",
            f"kept as they were: {', '.join(self.kept) or '-'}",
            f"left out: {len(self.rest)} tensors of {', '.join(sorted({_part(key) for key in self.rest})) or '-'}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _part(key: str) -> str:
    return key.partition(".")[0]
