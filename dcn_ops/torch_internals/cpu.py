"""Fast instructions of the CPU."""

from functools import lru_cache

import torch


@lru_cache
def has_fast_half(dtype: torch.dtype) -> bool:
    """Tell whether this CPU multiplies matrices in the dtype; if not, torch takes 9 times as long as in float32."""
    try:
        if dtype == torch.bfloat16:
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.cpu._is_amx_fp16_supported()
    except AttributeError:
        return False
