"""Which implementation the operator takes: by itself, or the one that was asked for."""

from dcn_ops.private import replace_cache_tag

NAMES = ("auto", "composition", "triton")
_name, _autotuned = "auto", False


def implementation() -> str:
    """Return which implementation the operator takes: ``"auto"`` at first."""
    return _name


def is_autotuned() -> bool:
    """Tell whether Triton kernels try several tiles on the first call with new numbers of channels and taps."""
    return _autotuned


def set_implementation(name: str, *, autotune: bool = False) -> None:
    """Choose the implementation of every later call, and of what is compiled later.

    Args:
        name: ``"auto"``: Triton kernels on GPUs for float32, float16 and bfloat16, else a composition of ATen
            kernels; ``"composition"``: that alone; ``"triton"``: those kernels, and ValueError where they can't
            run. Under ``torch.use_deterministic_algorithms(True)`` the gradient of the input is always the
            composition's, since the kernels add it up in an order that changes.
        autotune: Time several tiles of the Triton kernels on the first call with new numbers of channels, filters
            and taps, seconds each, instead of taking those of a table. Triton's disk cache keeps the results.

    Raises:
        ValueError: For another name.
    """
    if name not in NAMES:
        raise ValueError(f"expected an implementation among {', '.join(NAMES)}, got {name=}")
    global _name, _autotuned
    replace_cache_tag(_tag(), "")
    _name, _autotuned = name, autotune
    replace_cache_tag("", _tag())


def _tag() -> str:
    # The defaults have none: what was compiled with them stays good.
    return "" if (_name, _autotuned) == ("auto", False) else f"dcn_ops:{_name},{_autotuned};"
