"""Registers and shared memory of every shipped tile, compiled without a GPU: python benchmarks/gpu_registers.py.

For a 3x3 convolution of 256 channels with mask and bias, and an aggregation of 4 groups of 16 channels, bfloat16,
as ``tests/gpu/test_triton_compile.py`` compiles them. ``cuobjdump``, which comes with Triton, reads what NVIDIA's
assembler decided. ``--write`` writes the table into docs/gpu.md, between its marks; it takes minutes.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from zoo.scripts.storage.markdown import replace_block, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))
import test_triton_compile as shipped  # noqa: E402

from dcn_ops.triton.tiles import Tile  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")  # gfx942 has another tool
HEAD = ["for", "kernel", "tile (M × O × C)", "warps", "registers", "shared memory, KiB", "spilled bytes"]


def kernels(architecture: str) -> Iterator[tuple[str, Tile, Any]]:
    """Yield the name, the tile and the compiled kernel of every entry of the tables."""
    for name, tiles in shipped.configs.TABLES[architecture].items():
        if not name.endswith("tf32"):
            for tile in tiles:
                yield name, tile, shipped.compiled(architecture, name, tile)
    for name, tiles in shipped.aggregate.TABLES[architecture].items():
        for tile in tiles:
            yield f"aggregation {name}", tile, shipped.aggregation(architecture, name, tile)


def line(architecture: str, name: str, tile: Tile, kernel: Any, folder: Path) -> list[str]:
    """Return a line of the table."""
    used = shipped.resources(kernel, folder)
    sides = f"{tile.m}×{tile.n}×{tile.c}"
    spilled = used["STACK"] + used["LOCAL"]
    memory = f"{kernel.metadata.shared / 1024:.3g}"
    return [architecture, name, sides, str(tile.warps), str(used["REG"]), memory, str(spilled)]


def main() -> None:
    """Compile, print each line as it is found, and write the table if that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu.md")
    parser.add_argument("--only", choices=ARCHITECTURES, help="only this architecture; it can't be written")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write needs all architectures; leave --only out")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in [args.only] if args.only else ARCHITECTURES:
            for name, tile, kernel in kernels(architecture):
                lines.append(line(architecture, name, tile, kernel, Path(folder)))
                print("| " + " | ".join(lines[-1]) + " |", flush=True)
    if args.write:
        text = (
            f"{table(HEAD, lines)}\n\n(`python benchmarks/gpu_registers.py --write`, Triton {triton.__version__}.)"
        )
        replace_block(ROOT / "docs" / "gpu.md", "gpu-registers", text)


if __name__ == "__main__":
    main()
