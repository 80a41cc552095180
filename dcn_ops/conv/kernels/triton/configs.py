"""The tiles of each kernel, by architecture and arithmetic: a small table, and the choice from it.

``tests/gpu/test_triton_compile.py`` compiles every entry for its architectures and asserts that no register spills.
"""

import torch

from dcn_ops.triton.tiles import Device, Table, Tile, ordered, power_of_two

# Count, order, unroll and depthwise weight have one tile each: they add to memory or overwrite their input, so
# autotuning can't run them twice. The widest tile is first: it samples once for many filters. A narrow one suits
# few filters, or fills a large GPU.
_AMPERE: Table = {
    "forward half": (Tile(64, 256, 32, 8, 3), Tile(64, 128, 32, 8, 3), Tile(64, 32, 32, 4, 2)),
    "forward tf32": (Tile(64, 128, 32, 8, 2), Tile(64, 32, 32, 4, 2)),
    "forward ieee": (Tile(64, 64, 16, 8, 2),),
    "samples half": (Tile(64, 32, 32, 8, 3),),
    "samples tf32": (Tile(64, 32, 32, 8, 2),),
    "samples ieee": (Tile(64, 16, 32, 8, 2),),
    "weight half": (Tile(32, 128, 64, 8, 3), Tile(32, 64, 32, 4, 2)),
    "weight tf32": (Tile(32, 64, 64, 8, 2),),
    "weight ieee": (Tile(16, 64, 32, 8, 2),),
    "unroll": (Tile(16, 1, 64, 4, 1),),
    "count": (Tile(256, 1, 1, 4, 1),),
    "key": (Tile(256, 1, 1, 4, 1),),
    "order": (Tile(256, 1, 1, 4, 1),),
    "gather half": (Tile(16, 32, 128, 4, 3),),
    "gather ieee": (Tile(16, 32, 128, 4, 3),),
    "depthwise gather half": (Tile(16, 32, 128, 4, 3, near=True),),
    "depthwise gather ieee": (Tile(16, 32, 64, 4, 2),),
    "depthwise forward": (Tile(32, 1, 32, 4, 2),),
    "depthwise samples": (Tile(32, 1, 32, 4, 2),),
    "depthwise weight": (Tile(64, 1, 32, 4, 1),),
}
_HOPPER: Table = _AMPERE | {
    "unroll": (Tile(16, 1, 128, 4, 1),),
    "forward half": (Tile(128, 256, 32, 16, 3), Tile(64, 128, 32, 4, 3), Tile(64, 64, 64, 4, 3)),
    "forward ieee": (Tile(128, 128, 16, 8, 2), Tile(64, 64, 16, 8, 2)),
    "samples half": (Tile(64, 64, 64, 4, 3),),
    "weight half": (Tile(32, 256, 64, 8, 2), Tile(64, 128, 64, 4, 1)),
    "weight ieee": (Tile(16, 128, 64, 8, 1), Tile(32, 64, 32, 8, 1)),
}
_ADA: Table = _AMPERE | {
    "weight half": (Tile(32, 128, 64, 8, 2), Tile(32, 64, 32, 4, 2)),
    "depthwise gather half": (Tile(16, 32, 64, 4, 3, near=True),),
}  # with Ampere's stages or channels, registers spill
_BLACKWELL: Table = _HOPPER | {
    "forward half": (Tile(128, 256, 32, 8, 3), Tile(64, 128, 32, 4, 3), Tile(64, 64, 64, 4, 3)),
    "forward ieee": (Tile(128, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2)),
    "samples half": (Tile(64, 64, 64, 8, 3),),
    "gather ieee": (Tile(16, 32, 128, 4, 2),),
}  # with Hopper's tiles, registers spill, and 16 warps leave Blackwell's tensor cores unused
_CDNA: Table = {
    name: tuple(tile._replace(stages=2) for tile in tiles) for name, tiles in _AMPERE.items()
}  # its 64 KiB of shared memory are too small for a third stage
# Tiles that only autotuning tries: none was measured. Forms of the forward, see there; gathers of more rows, which
# read a sample 1.25 times with 64 pixels (4 rows), not twice.
_GATHERS: Table = {
    "gather half": (Tile(32, 32, 128, 4, 3), Tile(64, 32, 128, 8, 3), Tile(64, 32, 128, 4, 3)),
    "depthwise gather half": (
        Tile(16, 32, 128, 4, 2),  # with a third stage, registers spill on sm_100
        Tile(16, 32, 128, 4, 1),  # no asynchronous copies
        Tile(16, 32, 32, 4, 3, near=True),
        Tile(64, 32, 64, 4, 3, near=True),
        Tile(64, 32, 128, 8, 3, near=True),
    ),
}


def _forms(*tiles: Tile) -> Table:
    both = (form for tile in tiles for form in (tile._replace(flat=True), tile._replace(flat=True, near=True)))
    return {"forward half": tuple(both), **_GATHERS}


_AMPERE_TRIED = _forms(Tile(64, 256, 32, 8, 3))
_HOPPER_TRIED = _forms(Tile(128, 256, 32, 16, 3), Tile(64, 128, 32, 4, 3))
_HOPPER_TRIED["forward half"] += (Tile(128, 256, 32, 16, 4, flat=True), Tile(128, 256, 64, 16, 2, flat=True))
CANDIDATES = {
    "sm_80": _AMPERE_TRIED,
    "sm_89": _AMPERE_TRIED,
    "sm_90": _HOPPER_TRIED,
    "sm_100": _forms(Tile(128, 256, 32, 8, 3), Tile(64, 128, 32, 4, 3)),
    "gfx942": {name: tuple(t._replace(stages=2) for t in tiles) for name, tiles in _AMPERE_TRIED.items()},
}
ANY = 2**30  # filters, where a tile's second side is none of theirs
TABLES = {"sm_80": _AMPERE, "sm_89": _ADA, "sm_90": _HOPPER, "sm_100": _BLACKWELL, "gfx942": _CDNA}


def arithmetic(dtype: torch.dtype) -> str:
    """Return the arithmetic of products: "half"; for float32 "tf32", if torch's setting of matmul allows it."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tiles(kernel: str, device: Device, filters: int, channels: int, positions: int | None) -> list[Tile]:
    """Return the tiles for a kernel: first the default, then the others that autotuning tries.

    Args:
        kernel: A key of the tables.
        device: What ``device_of`` returns.
        filters: Filters that one program may cover; 1 if tiles have no side of filters.
        channels: Channels that one program may cover.
        positions: Output positions; None if they are not known yet.
    """
    table = TABLES[device.architecture][kernel]
    fitting = [t for t in table if t.n <= side(filters)] or [table[-1]]
    fitting = [t._replace(c=min(t.c, side(channels))) for t in fitting]
    first = fitting if positions is None else ordered(fitting, device, positions, filters)
    candidates = CANDIDATES[device.architecture].get(kernel, ())
    return first + [t._replace(c=min(t.c, side(channels))) for t in candidates if t.n <= side(filters)]


def side(size: int) -> int:
    """Return the side of a tile that covers ``size``: a power of two, at least 16 for tensor cores."""
    return max(16, power_of_two(size))
