"""Values as the messages of errors show them."""

import torch

LONGEST = 200


def shown(value: object) -> str:
    """Return a value's text on one short line; of anything longer its type, and its shape if it has one."""
    if not isinstance(value, torch.Tensor):
        text = repr(value)
        if len(text) <= LONGEST and "\n" not in text:
            return text
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {list(shape)}"
