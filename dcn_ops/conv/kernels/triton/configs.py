"""The tiles of each kernel, by architecture and arithmetic: a small table, and the choice from it.

``tests/gpu/test_triton_compile.py`` compiles every entry for its architectures and asserts that no register spills.
"""

from functools import lru_cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Output positions, filters and channels of a program's tile; warps and stages of its pipeline."""

    m: int
    n: int
    c: int
    warps: int
    stages: int


class Device(NamedTuple):
    """The properties of a device that the choice depends on."""

    architecture: str
    processors: int


# Count, order, unroll and depthwise weight have one tile each: they add to memory or overwrite their input, so
# autotuning can't run them twice. The widest tile is first: it samples once for many filters. A narrow one suits
# few filters, or fills a large GPU.
Table = dict[str, tuple[Tile, ...]]
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
    "order": (Tile(256, 1, 1, 4, 1),),
    "gather": (Tile(16, 32, 128, 4, 3),),
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
_CDNA: Table = {
    name: tuple(tile._replace(stages=2) for tile in tiles) for name, tiles in _AMPERE.items()
}  # its 64 KiB of shared memory are too small for a third stage
TABLES = {"sm_80": _AMPERE, "sm_89": _AMPERE, "sm_90": _HOPPER, "sm_100": _HOPPER, "gfx942": _CDNA}


@lru_cache
def device_of(device: torch.device) -> Device:
    """Return the table for the device, and its number of multiprocessors."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Device("gfx942", properties.multi_processor_count)
    capability = (properties.major, properties.minor)
    known = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    # GPUs of workstations have as much shared memory as sm_89, two thirds of sm_80.
    return Device(known.get(capability, "sm_89"), properties.multi_processor_count)


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
    if positions is None:
        return fitting
    # The widest tile that still gives every second multiprocessor a program.
    full = [t for t in fitting if 2 * -(-positions // t.m) * -(-filters // t.n) >= device.processors]
    first = full[0] if full else fitting[-1]
    return [first, *(tile for tile in fitting if tile != first)]


def side(size: int) -> int:
    """Return the side of a tile that covers ``size``: a power of two, at least 16 for tensor cores."""
    return max(16, 1 << (size - 1).bit_length())
