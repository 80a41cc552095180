"""How much memory the operator may take beside its inputs and outputs."""

_limit = 64 * 2**20
# An unrolled piece, its gradient, what the table, its sort and the contraction take, and the allocator's holes.
CHUNKS = 5


def workspace_limit() -> int:
    """Return the bytes that a call may take beside what a plain convolution would; 64 MiB at first."""
    return _limit


def set_workspace_limit(size: int) -> None:
    """Bound the memory of a call to about ``size`` bytes, beyond that of the images that its pieces read.

    Less than 32 MiB costs time: many small pieces. What is compiled already keeps its limit; compiled for symbolic
    sizes the work is one piece, whatever the limit.

    Raises:
        ValueError: For a negative size.
    """
    if size < 0:
        raise ValueError(f"expected a number of bytes, got {size=}")
    global _limit
    _limit = size


def chunk_bytes() -> int:
    """Return the bytes of an unrolled piece.

    With the default it stays near the last-level cache, and is large enough that starting threads does not show.
    """
    return _limit // CHUNKS
