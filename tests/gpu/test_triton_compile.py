"""Every shipped tile compiled for its architectures: tensor cores, no spills, shared memory that fits."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

triton = pytest.importorskip("triton", reason="Triton has no package for this platform")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from dcn_ops.conv.kernels.triton import configs, plan  # noqa: E402
from dcn_ops.triton.launch import sides_of  # noqa: E402

# Bytes that a program may have.
SHARED = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# The tables of sm_80 and sm_89 are one, and so are those of sm_90 and sm_100.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Pointers of one dtype, whatever that of the image.
WHOLE, WIDE = ("count_ptr", "next_ptr", "start_ptr", "row_ptr"), ("x_ptr", "above_ptr", "below_ptr")
NO_PRODUCT = ("unroll", "count", "order")
TENSOR_CORES = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "gfx942": "v_mfma"}


def constants_of(name: str) -> dict[str, Any]:
    """Return a 3x3 convolution of 256 channels with everything that makes a kernel large."""
    values = {"CHANNELS": 256, "OFFSET_DEPTH": 256, "TAPS": 9, "HAS_MASK": True, "HAS_BIAS": True}
    values |= {"WINDOW": (3, 3, 1, 1, 1, 1, 1, 1)}
    values |= {"NEED_INPUT": True, "NEED_OFFSET": True, "NEED_MASK": True, "SPLITS": 8, "TF32": "tf32" in name}
    values |= {"NEED_COLUMNS": True, "TAPS_EACH": 9, "OFFSET_GROUPS": 1}
    if name.startswith("depthwise"):
        return values | {"WIDTH": 1}
    return values | {"FILTERS": 256, "DEPTH": 256, "WIDTH": 256, "MERGED": 1, "SEGMENT": 256}


def compiled(architecture: str, name: str, tile: configs.Tile) -> Any:
    kernel = plan.KERNELS[name if name in plan.KERNELS else name.split()[0]]
    constants = constants_of(name) | sides_of(kernel, tile)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    narrow = "fp32" if name.endswith(("tf32", "ieee")) else "bf16"
    sums = ("parts_ptr",) if name == "gather" else ("parts_ptr", "grad_input_ptr")
    own = dict.fromkeys(WHOLE, "i32") | dict.fromkeys((*WIDE, *sums), "fp32")
    signature = {}
    for parameter in kernel.arg_names:
        pointer = f"*{own.get(parameter, narrow)}"
        signature[parameter] = (
            "constexpr" if parameter in constants else pointer if parameter.endswith("_ptr") else "i32"
        )
    aligned = {(i,): [["tt.divisibility", 16]] for i, p in enumerate(kernel.arg_names) if p.endswith("_ptr")}
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=TARGETS[architecture], options=options
    )


def resources(kernel: Any, folder: Path) -> dict[str, int]:
    """Return registers, bytes of stack and of local memory a thread: spilled registers are in one of the two."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True)
    return {key: int(re.search(rf"{key}:(\d+)", done.stdout)[1]) for key in ("REG", "STACK", "LOCAL")}


SHIPPED = [(a, name, tile) for a in TARGETS for name, tiles in configs.TABLES[a].items() for tile in tiles]


@pytest.mark.parametrize(("architecture", "name", "tile"), SHIPPED, ids=lambda v: str(v).replace("Tile", ""))
def test_a_shipped_tile_compiles_well(
    architecture: str, name: str, tile: configs.Tile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(architecture, name, tile)
    smallest = min(SHARED[a] for a in SHARED if configs.TABLES[a] is configs.TABLES[architecture])
    assert kernel.metadata.shared <= smallest
    text = kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]
    if "ieee" not in name and not name.startswith(("depthwise", *NO_PRODUCT)):
        small = name == "gather" and architecture == "sm_90"  # 16 pixels, where wgmma wants 64
        assert (TENSOR_CORES["sm_80"] if small else TENSOR_CORES[architecture]) in text
    if architecture == "gfx942":
        assert "vgpr_spill_count: 0" in text
        assert "private_segment_fixed_size: 0" in text
    else:
        used = resources(kernel, tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, used
