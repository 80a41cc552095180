"""How large the pieces are that a call's work goes in."""

from dcn_ops.settings import current

# An unrolled piece, its gradient, what the table, its sort and the contraction take, and the allocator's holes.
CHUNKS = 5


def chunk_bytes() -> int:
    """Return the bytes of an unrolled piece.

    With the default it stays near the last-level cache, and is large enough that starting threads does not show.
    """
    return current().workspace_limit // CHUNKS
