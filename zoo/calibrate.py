"""The predictions of a network's deformable layers on real images."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d
from dcn_ops.messages import shown


class Predicted:
    """The range of a layer's predictions over all images and positions, and the forward hook that collects it.

    G offset groups, K taps.
    """

    def __init__(self) -> None:
        self.given = False
        self.offset: Tensor | None = None  # [2, G * K * 2], least and largest, in pixels
        self.mask: Tensor | None = None  # [2, G * K]

    def __call__(self, layer: DeformConv2d, args: Any, kwargs: Any, output: Any) -> None:
        """Predict again, and widen the ranges."""
        if (args[1] if len(args) > 1 else kwargs.get("offset")) is not None:
            self.given = True
            return
        offset, mask = layer.offsets(args[0] if args else kwargs["input"])
        if offset.numel():
            self.offset = _widened(self.offset, offset)
            self.mask = None if mask is None else _widened(self.mask, mask)

    @property
    def constant_mask(self) -> Tensor:
        """The mask halfway between its smallest and its largest values, [G * K]."""
        assert self.mask is not None
        return self.mask.mean(0)


def _widened(seen: Tensor | None, values: Tensor) -> Tensor:
    """Return the smallest and the largest value of each channel of [N, channels, Ho, Wo] and of ``seen``."""
    least, largest = values.amin((0, 2, 3)), values.amax((0, 2, 3))
    if seen is not None:
        least, largest = torch.minimum(seen[0], least), torch.maximum(seen[1], largest)
    return torch.stack([least, largest]).to(torch.promote_types(values.dtype, torch.float32))


def calibrate(
    model: nn.Module, layers: Iterable[DeformConv2d], batches: Iterable[Any]
) -> dict[DeformConv2d, Predicted]:
    """Run the model over batches, in eval mode and without gradients; return what each layer predicted.

    Raises:
        ValueError: If there is no batch.
        TypeError: If a batch is no tensor and doesn't start with one.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"expected an iterable of batches, got one tensor; pass [batches], got {batches.shape=}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"expected an iterable of batches, such as a DataLoader, got {shown(batches)}")
    predicted = {layer: Predicted() for layer in layers}
    device = next(model.parameters()).device
    count = 0
    with _evaluating(model), ExitStack() as stack, torch.no_grad():
        for layer, record in predicted.items():
            stack.callback(layer.register_forward_hook(record, with_kwargs=True).remove)
        for count, batch in enumerate(batches, 1):  # noqa: B007  (read below)
            model(_images(batch, device))
    if not count:
        raise ValueError(f"expected at least one batch to measure offsets on, got none from {type(batches)}")
    return predicted


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _images(batch: object, device: torch.device) -> Tensor | list[Tensor]:
    """Return what the model takes: a tensor, or a list of images of a detector."""
    images = batch if _is_list_of_images(batch) or not isinstance(batch, tuple | list) or not batch else batch[0]
    if isinstance(images, tuple | list) and _is_list_of_images(images):
        return [image.to(device) for image in images]
    if not isinstance(images, Tensor):
        raise TypeError(
            f"expected batches of tensors, or of lists of images, or tuples that start with one, got {type(batch)}"
        )
    return images.to(device)


def _is_list_of_images(batch: object) -> bool:
    images = batch if isinstance(batch, tuple | list) else ()
    return bool(images) and all(isinstance(image, Tensor) and image.dim() == 3 for image in images)
