"""The tiles of both kernels, and a launch's numbers, which are computed once for each shape.

``tests/gpu/test_triton_compile.py`` compiles every tile for its architectures and asserts that no register spills.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, M = N * Ho * Wo output positions.
"""

from functools import lru_cache
from math import gcd
from typing import Any

from dcn_ops.aggregate.kernels.triton import sums
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.pieces import is_known
from dcn_ops.triton.launch import Constants, Plan, planned
from dcn_ops.triton.tiles import Device, Table, Tile, ordered, power_of_two

KERNELS = {"forward": sums.forward_kernel, "backward": sums.backward_kernel}
NEEDS = ("NEED_INPUT", "NEED_OFFSET", "NEED_MASK")

# For 16 channels of a group; ``shaped`` changes the sides for others. With the first tiles a forward thread has 8
# channels of one row, 16 bytes in half precision. A backward thread has 4, as many as one atomic addition takes.
# None of these was timed. Both kernels may run twice, which autotuning needs: it zeroes what the backward adds to.
_TILES: Table = {
    "forward": (Tile(64, 1, 16, 4, 1), Tile(128, 1, 16, 8, 1), Tile(32, 1, 16, 4, 1), Tile(16, 1, 16, 1, 1)),
    "backward": (Tile(64, 1, 16, 8, 1), Tile(64, 1, 16, 4, 1), Tile(32, 1, 16, 4, 1), Tile(16, 1, 16, 2, 1)),
}
TABLES = dict.fromkeys(("sm_80", "sm_89", "sm_90", "sm_100", "gfx942"), _TILES)
_LINE = 128  # bytes of a cache line
_CHANNELS = 128  # of a tile, at most
_WARP = 32  # rows of a tile for each warp, at most: one for each thread


@lru_cache(4096)
def plan(
    kernel: str,
    image: tuple[int, int, int, int],
    output: tuple[int, int],
    window: Window,
    needs: tuple[bool, bool, bool],
    itemsize: int,
    device: Device,
    tuned: bool,
) -> Plan:
    """Return the launch of a kernel.

    Args:
        kernel: A key of ``KERNELS``.
        image: N, H, W, C.
        output: Ho, Wo.
        window: The numbers of the call.
        needs: For the backward, which gradients it writes: input, offset, mask.
        itemsize: Bytes of a number of the image.
        device: What ``device_of`` returns.
        tuned: Whether to time the tiles of the table.
    """
    (n, height, width, channels), (ho, wo) = image, output
    sizes = {"H": height, "W": width, "Ho": ho, "Wo": wo, "M": n * ho * wo}
    constants = constants_of(channels, window, itemsize) | dict(zip(NEEDS, needs, strict=True))
    depth, each = constants["DEPTH"], constants["GROUPS_EACH"]
    tiles = [shaped(tile, depth, each) for tile in TABLES[device.architecture][kernel]]
    rows = sizes["M"] * window.groups * -(-depth // tiles[0].c)
    tiles = ordered(tiles, device, rows) if is_known(rows) else tiles

    def grid(meta: Constants) -> tuple[int]:
        columns = window.groups // each * (-(-depth // meta["BLOCK_C"]) if kernel == "forward" else 1)
        return (-(-sizes["M"] * each // meta["BLOCK_M"]) * columns,)

    return planned(KERNELS[kernel], tiles, grid, sizes, constants, tuned)


def constants_of(channels: int, window: Window, itemsize: int) -> dict[str, Any]:
    """Return the constants that a kernel is compiled for: the numbers of a layer, of which a network has few."""
    depth, taps = int(channels) // int(window.groups), int(window.taps)
    pairs = window.kernel_size, window.stride, window.padding, window.dilation
    centre = taps // 2 if window.remove_center else taps
    return {
        "CHANNELS": int(channels),
        "DEPTH": depth,
        "GROUPS_EACH": gcd(int(window.groups), min(_WARP, _power_below(_LINE // (depth * itemsize)))),
        "TAPS": taps,
        "WINDOW": (*(int(i) for pair in pairs for i in pair), centre),
        "SCALE": float(window.offset_scale),
    }


def _power_below(size: int) -> int:
    """Return the largest power of two that is at most ``size``; 1 if there is none."""
    return 1 << max(0, size.bit_length() - 1)


def shaped(tile: Tile, depth: int, each: int) -> Tile:
    """Return a tile of about as many numbers whose side of channels fits a group of ``depth``."""
    side = min(power_of_two(depth), _CHANNELS)
    return tile._replace(m=max(each, min(tile.m * tile.c // side, _WARP * tile.warps)), c=side)
