"""One forward pass of a copy of a network, and what it shows."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.check import Size
from zoo.image import IMAGE, Origins
from zoo.part_flops import PartFlops
from zoo.parts import BACKBONE, DECODER, HEAD, outermost

# What the layers that compute outputs consist of, and the layers before them.
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


# What may become deformable.
_MEASURED = (nn.Conv2d, nn.AvgPool2d)


def _lists() -> defaultdict[Any, list[Any]]:
    return defaultdict(list)


@dataclass(kw_only=True)
class Measured:
    """What is known about a network, for one image.

    Attributes:
        size: [C, H, W] of the image; None if unknown.
        seen: [H, W] that the backbone inside got; None if there is none, or if it was not called.
        failure: Why the network doesn't run to its end; None if it does.
        readers: The convolutions and poolings that read the image.
        called: Those that were called before the run ended or failed.
        inputs: The shapes [N, C, H, W] of the inputs of each, for one image.
        positions: Outputs per channel of each convolution and pooling, 0 if it is never called; empty after a
            failure.
        strides: Height of the image divided by the height of a convolution's (last) output; empty without a size,
            and after a failure of a network without a backbone inside. In a backbone inside, what it gets counts
            instead of the image, since detectors resize.
        consumers: Of each layer in decoder and head, the layers that read its results; None stands for an unknown
            one. A layer that is missing computes an output, or was not called.
        flops: FLOPs of the network; None after a failure, or without a size.
        flops_by_part: FLOPs of each part, likewise; empty if they are unknown.
    """

    size: Size | None = None
    seen: tuple[int, int] | None = None
    failure: str | None = None
    readers: set[nn.Module] = field(default_factory=set)
    called: set[nn.Module] = field(default_factory=set)
    inputs: defaultdict[nn.Module, list[tuple[int, int, int, int]]] = field(default_factory=_lists)
    positions: dict[nn.Module, int] = field(default_factory=dict)
    strides: dict[nn.Module, float] = field(default_factory=dict)
    consumers: dict[nn.Module, set[nn.Module | None]] = field(default_factory=dict)
    flops: int | None = None
    flops_by_part: dict[str, int] = field(default_factory=dict)

    def computes_output(self, layer: nn.Module | None) -> bool:
        """Tell whether no other layer reads the results of a layer of decoder or head."""
        return layer is not None and layer not in self.consumers


def forward(model: nn.Module, twin: nn.Module, size: Size, images: Any, parts: Mapping[str, str]) -> Measured:
    """Run a copy of a model; its failure is part of the result.

    Args:
        model: The network.
        twin: The copy.
        size: [C, H, W] of an image.
        images: What the copy takes: [N, C, H, W], or a list of images.
        parts: The part of each module, by name.
    """
    run = Measured(size=size, positions={m: 0 for m in model.modules() if isinstance(m, _MEASURED)})
    origins, counter = Origins(), FlopCounterMode(display=False)
    flops = PartFlops(counter, parts[""])
    for image in images:
        origins.add(image, [IMAGE])
    # The model may draw random numbers on the CPU; the caller's generator stays unchanged.
    with (
        _removed(_hooks(run, origins, flops, model, twin, len(images), parts)),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        counter,
        origins,
    ):
        try:
            twin(images)
        # A network may fail in any way without data; the plan then goes on with what is known.
        except Exception as error:
            run.failure, run.positions = str(error).partition("\n")[0], {}
        else:
            run.flops = counter.get_total_flops() // len(images)
            run.flops_by_part = {part: count // len(images) for part, count in flops.finish().items()}
    run.consumers = {m: by for m, by in origins.readers.items() if isinstance(m, nn.Module)}
    return run


def _hooks(
    run: Measured,
    origins: Origins,
    flops: PartFlops,
    model: nn.Module,
    twin: nn.Module,
    images: int,
    parts: Mapping[str, str],
) -> Iterator[Any]:
    """Put all hooks on the copy; yields their handles."""
    for name, part in outermost(parts).items():
        yield from flops.hooks(twin.get_submodule(name), part)
        if part == BACKBONE:
            yield twin.get_submodule(name).register_forward_pre_hook(partial(_see, run), with_kwargs=True)
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS) and parts[name] in (DECODER, HEAD):
            yield from _follow(origins, module, twin.get_submodule(name))
        if isinstance(module, _MEASURED):
            hook = partial(_record, run, origins, module, images)
            yield twin.get_submodule(name).register_forward_hook(hook, with_kwargs=True)


@contextmanager
def _removed(handles: Iterator[Any]) -> Iterator[None]:
    """Remove hooks at the end."""
    made = list(handles)
    try:
        yield
    finally:
        for handle in made:
            handle.remove()


def _follow(origins: Origins, layer: nn.Module, twin: nn.Module) -> list[Any]:
    """Follow the results of a layer, and make it the reader of what it reads."""

    def enter(*_: Any) -> None:
        origins.layer = layer

    def leave(_: Any, args: Any, output: Any) -> None:
        origins.layer = None
        origins.add(output, [layer])

    return [twin.register_forward_pre_hook(enter), twin.register_forward_hook(leave)]


def _see(run: Measured, _: Any, args: Any, kwargs: Any) -> None:
    """Record the size of the image that a backbone gets."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() == 4:
            run.seen = (value.shape[-2], value.shape[-1])
            return


def _record(
    run: Measured, origins: Origins, layer: nn.Module, images: int, _: Any, args: Any, kwargs: Any, output: Tensor
) -> None:
    run.called.add(layer)
    given = [*args, *kwargs.values()]
    if any(IMAGE in origins.of(value) for value in given):
        run.readers.add(layer)
    if given[0].dim() == 4:
        count, *shape = given[0].shape
        run.inputs[layer].append((max(1, count // images), *shape))
    run.positions[layer] += output.numel() // output.shape[-3] // images
    assert run.size is not None
    run.strides[layer] = (run.seen or run.size[1:])[0] / output.shape[-2]
