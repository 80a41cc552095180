"""Tiles of kernels: their form, the device that they are for, and the choice among several."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Output positions, filters and channels of a program's tile; warps and stages of its pipeline; its form."""

    m: int
    n: int
    c: int
    warps: int
    stages: int
    flat: bool = False  # see the dense forward; near: also the depthwise gather
    near: bool = False


class Device(NamedTuple):
    """The properties of a device that the choice depends on."""

    architecture: str  # a key of the tables
    processors: int


Table = dict[str, tuple[Tile, ...]]


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


def ordered(tiles: Sequence[Tile], device: Device, positions: int, filters: int = 1) -> list[Tile]:
    """Return the tiles, first the default: the first that gives every second multiprocessor a program.

    Args:
        tiles: From the widest to the narrowest.
        device: What ``device_of`` returns.
        positions: Output positions.
        filters: Filters that one program may cover.
    """
    full = [t for t in tiles if 2 * -(-positions // t.m) * -(-filters // t.n) >= device.processors]
    first = full[0] if full else tiles[-1]
    return [first, *(tile for tile in tiles if tile != first)]


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()
