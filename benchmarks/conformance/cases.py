"""The cases: a convolution, where it samples, its dtype and the shapes of its calls; and the float64 reference."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import methodcaller

import torch
from torch import Tensor

from dcn_ops.conv import reference
from dcn_ops.testing import Case, Inputs, make_inputs

# Largest error that is right, relative to the largest value of the reference: rounding of positions included.
BUDGET = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_FAR = {"far": 1e4, "very far": 1e30, "nan": float("nan"), "+inf": float("inf"), "-inf": -float("inf")}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of the table."""

    shape: Case = field(default_factory=lambda: _shape())
    samples: str = "inside"  # one of SAMPLES
    dtype: str = "float32"
    # False: the operator's definition is silent. The answers are compared with this library's, which is 0.
    specified: bool = True
    axes: tuple[int, ...] = ()  # dynamic axes of the image
    calls: tuple[tuple[int, int, int], ...] = ()  # batch, height, width of every call; none: the shape's own


def _shape(**changes: object) -> Case:
    return replace(Case(batch=1, channels=4, filters=4), **changes)  # type: ignore[arg-type]


def _of(samples: str = "inside", **changes: object) -> Question:
    return Question(shape=_shape(**changes), samples=samples)


Draw = Callable[[torch.Generator, tuple[int, ...], int], Tensor]


def _inside(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
    return torch.randint(32 * (size - 1) + 1, shape, generator=generator) / 32


def _before(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
    return torch.randint(1, 32, shape, generator=generator) / 32 - 1


def _after(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
    return torch.randint(1, 32, shape, generator=generator) / 32 + size - 1


def _either(first: Draw, second: Draw) -> Draw:
    def draw(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
        chosen = torch.randint(2, shape, generator=generator) == 0
        return torch.where(chosen, first(generator, shape, size), second(generator, shape, size))

    return draw


def _always(value: Callable[[int], float]) -> Draw:
    return lambda generator, shape, size: torch.full(shape, value(size))


def _integer(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
    return torch.randint(size, shape, generator=generator).double()


def _beyond(generator: torch.Generator, shape: tuple[int, ...], size: int) -> Tensor:
    distance = torch.randint(97, shape, generator=generator) / 32
    return torch.where(torch.randint(2, shape, generator=generator) == 0, -1 - distance, size + distance)


# Where samples lie, on the vertical and the horizontal axis.
SAMPLES: dict[str, tuple[Draw, Draw]] = {
    "inside": (_inside, _inside),
    "integers": (_integer, _integer),
    "above": (_before, _inside),
    "left": (_inside, _before),
    "below": (_after, _inside),
    "right": (_inside, _after),
    "corners": (_either(_before, _after), _either(_before, _after)),
    "-1": (_either(_always(lambda size: -1), _inside),) * 2,
    "size - 1": (_either(_always(lambda size: size - 1), _inside),) * 2,
    "size": (_either(_always(lambda size: size), _inside),) * 2,
    "beyond": (_either(_beyond, _inside),) * 2,
}

CASES: dict[str, Question] = {
    "zero offsets": _of("zero"),
    "dense": _of(),
    "trained offsets": _of("near"),
    "kernel 1x1": _of(kernel=(1, 1), padding=(0, 0)),
    "kernel 1x3": _of(kernel=(1, 3), padding=(0, 1)),
    "kernel 2x2": _of(kernel=(2, 2), padding=(0, 0)),
    "kernel 3x2": _of(kernel=(3, 2)),
    "kernel 5x5": _of(kernel=(5, 5), padding=(2, 2)),
    "kernel 7x7": _of(kernel=(7, 7), padding=(3, 3)),
    "no padding": _of(padding=(0, 0)),
    "padding 1x2": _of(padding=(1, 2)),
    "stride 2": _of(stride=(2, 2)),
    "stride 2x1": _of(stride=(2, 1)),
    "dilation 2": _of(dilation=(2, 2), padding=(2, 2)),
    "dilation 2x3": _of(dilation=(2, 3), padding=(2, 3)),
    "no mask": _of(mask=False),
    "no bias": _of(bias=False),
    "no mask and no bias": _of(mask=False, bias=False),
    "groups 2": _of(groups=2),
    "depthwise": _of(groups=4),
    "depthwise with 2 filters a channel": _of(groups=4, filters=8),
    "offset groups 2": _of(offset_groups=2),
    "offset groups 4 of 4 channels": _of(offset_groups=4),
    "offset groups 2 without mask": _of(offset_groups=2, mask=False),
    "groups 2 with offset groups 2": _of(groups=2, offset_groups=2),
    "groups 2 with offset groups 4": _of(groups=2, offset_groups=4),
    "groups 4 with offset groups 2": _of(groups=4, offset_groups=2),
    "groups 2 with offset groups 3": _of(channels=6, groups=2, offset_groups=3),
    "all at once": _of("near", channels=6, filters=8, groups=2, offset_groups=3, kernel=(3, 2), stride=(2, 1),
                       padding=(2, 1), dilation=(1, 2)),
    "batch 3": _of(batch=3),
    "one pixel": _of("near", size=(1, 1)),
    "one row": _of("near", size=(1, 9)),
    "one channel and one filter": _of(channels=1, filters=1),
    "3 channels and 5 filters": _of(channels=3, filters=5),
    "700 columns": _of(channels=1, filters=1, size=(3, 700), stride=(1, 10)),
    "integer positions": _of("integers"),
    "above the first row": _of("above"),
    "left of the first column": _of("left"),
    "below the last row": _of("below"),
    "right of the last column": _of("right"),
    "beside the corners": _of("corners"),
    "at -1": _of("-1"),
    "at size - 1": _of("size - 1"),
    "at size": _of("size"),
    "beyond the border": _of("beyond"),
    "offsets of 1e4": _of("far"),
    "offsets of 1e30": _of("very far"),
    "offsets NaN": replace(_of("nan"), specified=False),
    "offsets inf": replace(_of("+inf"), specified=False),
    "offsets -inf": replace(_of("-inf"), specified=False),
    "batch 0": replace(_of(batch=2), axes=(0,), calls=((0, 9, 7),)),
    "dynamic batch": replace(_of(batch=2), axes=(0,), calls=((1, 9, 7), (3, 9, 7))),
    "dynamic size": replace(_of("near", batch=2), axes=(0, 2, 3), calls=((1, 12, 10), (2, 7, 13))),
    "float16": replace(_of("near"), dtype="float16"),
    "bfloat16": replace(_of("near"), dtype="bfloat16"),
    "float64": replace(_of("near"), dtype="float64"),
}  # fmt: skip


def calls(question: Question) -> list[Inputs]:
    """Return the tensors of every call, rounded to the question's dtype; weight and bias are the same for all."""
    shapes = question.calls or ((question.shape.batch, *question.shape.size),)
    first = _draw(question, question.shape)
    drawn = [_draw(question, replace(question.shape, batch=n, size=(h, w))) for n, h, w in shapes]
    return [inputs._replace(weight=first.weight, bias=first.bias) for inputs in drawn]


def example(question: Question) -> Inputs:
    """Return the tensors that a file is written with."""
    return _draw(question, question.shape)


def _draw(question: Question, shape: Case) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    offset = _offsets(question.samples, shape, generator)
    inputs = make_inputs(shape, torch.float64)._replace(offset=offset)
    dtype, kept = getattr(torch, question.dtype), torch.float64 if question.dtype == "float64" else torch.float32
    return inputs.map(lambda tensor: tensor.to(dtype).to(kept))


def _offsets(samples: str, shape: Case, generator: torch.Generator) -> Tensor:  # [N, G*K*2, Ho, Wo]
    """Draw offsets whose samples lie where ``samples`` says; all are multiples of 1/32."""
    ho, wo = shape.conv.output_size(shape.size)
    sizes = (shape.batch, shape.offset_groups, *shape.kernel, ho, wo)
    grid = shape.conv.grid((0, ho), wo, torch.float64, torch.device("cpu"))
    if samples == "zero":
        return torch.zeros(sizes)[:, :, :, :, None].expand(-1, -1, -1, -1, 2, -1, -1).flatten(1, 4)
    if samples == "near":
        axes = [torch.randint(-64, 65, sizes, generator=generator) / 32 for _ in grid]
    else:
        draws = SAMPLES.get(samples, SAMPLES["inside"])
        axes = [draw(generator, sizes, n) - part for draw, part, n in zip(draws, grid, shape.size, strict=True)]
    if samples in _FAR:  # of one sample in five, on either axis
        for axis in axes:
            sign = 1 - 2 * torch.randint(2, sizes, generator=generator) if "far" in samples else 1
            chosen = torch.rand(sizes, generator=generator) < 0.1
            axis.copy_(torch.where(chosen, sign * _FAR[samples], axis))
    return torch.stack(axes, 4).flatten(1, 4)


def expected(question: Question) -> list[Tensor]:
    """Return the reference's output for every call, computed in float64."""
    return [
        reference.forward(*inputs.map(methodcaller("double")), question.shape.conv) for inputs in calls(question)
    ]
