"""Which calls Triton kernels accept: what operators share. It doesn't import Triton, which torch need not have."""

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unsupported(input: Tensor) -> str | None:
    """Return why no Triton kernel takes an image of this device, dtype or size; None if they do."""
    if not input.is_cuda:
        return _elsewhere(input.device) if is_installed() else _MISSING
    reason = _refusal(is_installed(), input.dtype)
    if reason is None and input.numel() == 0:
        return f"Triton kernels need an image, got input.shape={list(input.shape)}"
    return reason


_MISSING = "Triton is not installed; pip install triton"


@cache  # so each reason is logged once
def _refusal(installed: bool, dtype: torch.dtype) -> str | None:
    if not installed:
        _log.warning("a composition of torch's operators runs on the GPU, which is slower: %s", _MISSING)
        return _MISSING
    if dtype not in DTYPES:
        reason = f"Triton kernels take float32, float16 and bfloat16, got input.dtype={dtype}"
        _log.info("a composition of torch's operators runs on the GPU: %s", reason)
        return reason
    return None


@cache  # without the cache a small call on the CPU would take 2 % longer
def _elsewhere(device: torch.device) -> str:
    return f"Triton kernels need a GPU, got input.device={device}; move the tensors with .cuda()"


@cache
def is_installed() -> bool:
    """Tell whether Triton is installed: torch itself requires it only on Linux."""
    return importlib.util.find_spec("triton") is not None
