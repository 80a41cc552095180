"""Tiles that were never measured, each beside today's: python benchmarks/candidates_gpu.py forward, or backward.

*forward*: dense in bfloat16: every tile that autotuning tries (``dcn_ops/conv/kernels/triton/configs.py``), and
columns of a few images with the library's product. *backward*: the gathers, dense and depthwise, the atomic
additions that the depthwise one replaces, and pieces of columns that fit L2. A candidate whose results differ from
today's is an error. Today's tile is timed again after the others: the difference is what the clock did.

benchmarks/results/cuda-candidates.json is written after every case; a run that is called again with the same commit
and GPU goes on where it stopped. ``--dry-run`` prints what would be timed on an H100, with the bytes through L2.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from zoo.scripts.benchmark import gpu
from zoo.scripts.benchmark.cases import SUITES, Case
from zoo.scripts.storage.files import atomically
from zoo.scripts.storage.provenance import provenance

import dcn_ops
from dcn_ops.conv.kernels.triton import configs, launch, plan, unrolled
from dcn_ops.conv.kernels.triton.call import Call
from dcn_ops.triton import tiles
from dcn_ops.triton.tiles import Device, Tile

RESULTS = Path(__file__).parent / "results" / "cuda-candidates.json"
CASES = {
    "forward": ("32x256x56x56-bfloat16", "32x512x28x28-bfloat16"),
    "backward": ("8x96x56x56-k7-dw-bfloat16", "32x256x56x56-bfloat16"),
}
H100 = Device("sm_90", 132)
PIECES = (1, 2, 4)  # images of columns; four were measured once, 0.61 ms
LIMITS = (16, 32, 256)  # MiB of columns in a backward, where 64 is the default
Row = dict[str, Any]


def case_named(name: str) -> Case:
    """Return a case of ``dcn-bench suite=gpu``."""
    return next(case for case in SUITES["gpu"] if case.name == name)


def key_of(case: Case, mode: str) -> str:
    """Return the key in the table of tiles of the kernel that differs."""
    if mode == "forward":
        return "forward half"
    return "gather half" if case.groups == 1 else "depthwise gather half"


def tiles_of(case: Case, mode: str, device: Device) -> list[Tile]:
    """Return the tiles for a case: today's first."""
    filters = case.filters if mode == "forward" else configs.ANY
    positions = case.batch * case.height * case.width
    return configs.tiles(key_of(case, mode), device, filters, case.channels // case.offset_groups, positions)


def name_of(tile: Tile) -> str:
    """Return a tile in words."""
    forms = [form for form in ("flat", "near") if getattr(tile, form)]
    return " ".join([f"{tile.m}x{tile.n}x{tile.c} {tile.warps} warps {tile.stages} stages", *forms])


# Bytes through L2, counted.


def _pixels(case: Case, tile: int, strips: bool) -> int:
    """Return how many pixels the samples of each ``tile`` positions of an image touch, added up over the tiles."""
    ho, wo, side = case.height, case.width, case.kernel
    offset = case.inputs(1.0, "cpu")["offset"][0].float().view(side, side, 2, ho, wo)
    y, x = case.conv.grid((0, ho), wo, torch.float32, torch.device("cpu"))
    top, left = (y + offset[:, :, 0]).floor().long(), (x + offset[:, :, 1]).floor().long()
    row, column = torch.arange(ho)[:, None], torch.arange(wo)[None]
    index = row * wo + column
    if strips:
        height = (ho - row // 8 * 8).clamp(max=8)
        index = row // 8 * 8 * wo + column * height + row % 8
    found = []
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inside = (top + down >= 0) & (top + down < ho) & (left + right >= 0) & (left + right < wo)
        pixel = (index // tile * ho + top + down) * wo + left + right
        found.append(pixel[inside])
    return torch.cat(found).unique().numel()


def l2_bytes(case: Case, tile: Tile) -> int:
    """Return the bytes that the forward reads through L2.

    Without ``near`` every neighbour comes from there. With it the nearest cache keeps the pixels of a tile, for one
    block of channels and all taps, if it is flat: with 32 channels of them and 600 pixels it needs 38 KB.
    """
    positions, taps = case.batch * case.height * case.width, case.kernel**2
    blocks = -(-case.filters // tile.n)
    weights = -(-positions // tile.m) * taps * case.channels * case.filters * 2
    pixels = 4 * positions * taps if not tile.near else case.batch * _pixels(case, tile.m, strips=True)
    return weights + blocks * pixels * case.channels * 2


def columns_bytes(case: Case) -> int:
    """Return the same for columns that stay in L2: pixels, columns written and read, products of 128x256."""
    positions, row = case.batch * case.height * case.width, case.kernel**2 * case.channels * 2
    pixels = case.batch * _pixels(case, configs.TABLES["sm_90"]["unroll"][0].m, strips=False) * case.channels * 2
    return pixels + positions * row * (1 + -(-case.filters // 256)) + -(-positions // 128) * row * case.filters


# What is timed.


@contextmanager
def only(key: str, tile: Tile) -> Iterator[None]:
    """Use one tile for the kernel ``key``."""
    table = configs.TABLES[tiles.device_of(torch.device("cuda")).architecture]
    kept = table[key]
    table[key] = (tile,)
    _forget()
    try:
        yield
    finally:
        table[key] = kept
        _forget()


def _forget() -> None:
    for module in (plan, launch):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@contextmanager
def without_gather() -> Iterator[None]:
    """Let small and large problems take atomic additions."""
    kept, launch._COLUMNS = launch._COLUMNS, 2**62
    try:
        yield
    finally:
        launch._COLUMNS = kept


def step_of(case: Case, mode: str) -> Callable[[], list[Tensor]]:
    """Return the call that is timed: the forward, or the backward with every gradient."""
    tensors = case.inputs(1.0, "cuda")
    ordered = tensors["input"], tensors["offset"], tensors["weight"], None, tensors["mask"]
    integers = {name: value for name, value in case.conv._asdict().items() if name != "kernel_size"}
    ops, needs = torch.ops.dcn_ops, [True, True, True, False, True]
    out = ops.deform_conv2d(*ordered, **integers)
    if mode == "forward":
        return lambda: [ops.deform_conv2d(*ordered, **integers)]
    grad = torch.randn_like(out)
    return lambda: [t for t in ops.deform_conv2d_backward(grad, *ordered, **integers, needs=needs) if t is not None]


def columns_step(case: Case, images: int, device: str = "cuda") -> Callable[[], list[Tensor]]:
    """Return the forward by columns of some images at a time."""
    tensors = case.inputs(1.0, device)
    image = tensors["input"].permute(0, 2, 3, 1).contiguous()
    call = Call(image, tensors["offset"], tensors["mask"], tensors["weight"], case.conv)
    limit = images * case.height * case.width * tensors["weight"][0].numel() * 2

    def step() -> list[Tensor]:
        with dcn_ops.settings(workspace_limit=limit):
            return [unrolled.forward(call, None).permute(0, 3, 1, 2)]

    return step


def time_of(name: str, step: Callable[[], list[Tensor]], expected: list[Tensor], rounds: int) -> Row:
    """Return the time of a candidate, whose results must be those of today."""
    for actual, correct in zip(step(), expected, strict=True):
        error = ((actual.float() - correct.float()).abs().max() / correct.abs().max()).item()
        if not error <= 2e-2:  # NaN is wrong
            raise ValueError(f"{name} differs from today's results by {error:.1e} of the largest value")
    return {"candidate": name, **gpu.timed({name: step}, rounds)[name]}


def rows_of(case: Case, mode: str, rounds: int) -> list[Row]:
    """Check and time all candidates of a case."""
    step, device = step_of(case, mode), tiles.device_of(torch.device("cuda"))
    expected = step()
    today, *others = tiles_of(case, mode, device)
    rows = []
    for name, tile in [("today", today), *((name_of(tile), tile) for tile in others), ("today again", today)]:
        with only(key_of(case, mode), tile):
            rows.append(time_of(name, step, expected, rounds))
        if mode == "forward":
            rows[-1]["l2_bytes"] = l2_bytes(case, tile)
    if mode == "forward":
        rows += [
            time_of(f"columns of {images} images", columns_step(case, images), expected, rounds)
            for images in PIECES
        ]
    elif case.groups > 1:
        with without_gather():
            rows.append(time_of("atomic additions", step, expected, rounds))
    else:
        for limit in LIMITS:
            with dcn_ops.settings(workspace_limit=limit * 2**20):
                rows.append(time_of(f"pieces of {limit} MiB", step, expected, rounds))
    return [{"case": case.name, "mode": mode, **row} for row in rows]


def show_plan(mode: str) -> None:
    """Print the candidates of an H100, and the counted bytes."""
    for name in CASES[mode]:
        case = case_named(name)
        for i, tile in enumerate(tiles_of(case, mode, H100)):
            counted = f" {l2_bytes(case, tile) / 1e9:6.2f} GB through L2" if mode == "forward" else ""
            print(f"{name:<26} {name_of(tile) + (', today' if i == 0 else ''):<40}{counted}")
        if mode == "forward":
            print(f"{name:<26} {f'columns of {PIECES} images':<40} {columns_bytes(case) / 1e9:6.2f} GB through L2")
        elif case.groups > 1:
            print(f"{name:<26} atomic additions")
        else:
            print(f"{name:<26} pieces of {LIMITS} MiB")


def main() -> None:
    """Measure what is not measured yet, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=tuple(CASES))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true", help="print what would be timed")
    args = parser.parse_args()
    if args.dry_run:
        show_plan(args.mode)
        return
    if not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; --dry-run prints what would be timed")
    dcn_ops.set_implementation("triton")  # an error where it can't run
    about = provenance("python benchmarks/candidates_gpu.py")
    rows = gpu.measured(RESULTS, about)
    for name in CASES[args.mode]:
        if any((row["case"], row["mode"]) == (name, args.mode) for row in rows):
            continue
        new = rows_of(case_named(name), args.mode, args.rounds)
        for row in new:
            print(f"{name:<26} {row['candidate']:<40} {row['ms']:8.3f} ms", flush=True)
        rows += new
        text = json.dumps({**about, "rows": rows}, indent=1) + "\n"
        atomically(RESULTS, lambda path, text=text: path.write_text(text))


if __name__ == "__main__":
    main()
