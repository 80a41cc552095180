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

from dcn_ops.aggregate.kernels.triton import plan as aggregate  # noqa: E402
from dcn_ops.aggregate.window import Window  # noqa: E402
from dcn_ops.conv.kernels.triton import configs, plan  # noqa: E402
from dcn_ops.triton.launch import sides_of  # noqa: E402
from dcn_ops.triton.tiles import Tile  # noqa: E402

# Bytes that a program may have.
SHARED = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Pointers of one dtype, whatever that of the image.
WHOLE, WIDE = ("count_ptr", "key_ptr", "next_ptr", "start_ptr", "row_ptr"), ("y_ptr", "x_ptr", "scale_ptr")
NO_PRODUCT = ("unroll", "count", "key", "order", "depthwise forward", "depthwise samples", "depthwise weight")
TENSOR_CORES = {
    "sm_80": "mma.sync",
    "sm_89": "mma.sync",
    "sm_90": "wgmma.mma_async",
    "sm_100": "tcgen05.mma",
    "gfx942": "v_mfma",
}


def constants_of(name: str) -> dict[str, Any]:
    """Return a 3x3 convolution of 256 channels with everything that makes a kernel large."""
    values = {"CHANNELS": 256, "OFFSET_DEPTH": 256, "TAPS": 9, "HAS_MASK": True, "HAS_BIAS": True}
    values |= {"WINDOW": (3, 3, 1, 1, 1, 1, 1, 1)}
    values |= {"NEED_INPUT": True, "NEED_OFFSET": True, "NEED_MASK": True, "SPLITS": 8, "TF32": "tf32" in name}
    values |= {"NEED_COLUMNS": True, "TAPS_EACH": 9, "OFFSET_GROUPS": 1, "SORTED": False}
    values |= {"PART": 256, "ADD_MAPS": True}
    values |= {"HALF": not name.endswith(("tf32", "ieee")), "LENGTH": 16, "DEPTHWISE": name.startswith("depthwise")}
    if name.startswith("depthwise"):
        return values | {"WIDTH": 1}
    return values | {"FILTERS": 256, "DEPTH": 256, "WIDTH": 256, "MERGED": 1, "SEGMENT": 256}


def compiled(architecture: str, name: str, tile: Tile) -> Any:
    kernel = plan.KERNELS[re.sub(" (half|tf32|ieee)", "", name)]
    constants = constants_of(name) | sides_of(kernel, tile)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    narrow = "fp32" if name.endswith(("tf32", "ieee")) else "bf16"
    sums = ("parts_ptr",) if "gather" in name else ("parts_ptr", "grad_input_ptr")
    own = dict.fromkeys(WHOLE, "i32") | dict.fromkeys((*WIDE, *sums), "fp32")
    return compiled_for(TARGETS[architecture], kernel, tile, constants, own, narrow)


def compiled_for(
    target: GPUTarget, kernel: Any, tile: Tile, constants: dict[str, Any], own: dict[str, str], narrow: str
) -> Any:
    """Compile a kernel whose pointers have the dtypes ``own`` by name, and otherwise ``narrow``."""
    signature = {}
    for parameter in kernel.arg_names:
        pointer = f"*{own.get(parameter, narrow)}"
        signature[parameter] = (
            "constexpr" if parameter in constants else pointer if parameter.endswith("_ptr") else "i32"
        )
    aligned = {(i,): [["tt.divisibility", 16]] for i, p in enumerate(kernel.arg_names) if p.endswith("_ptr")}
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)


def resources(kernel: Any, folder: Path) -> dict[str, int]:
    """Return registers, bytes of stack and of local memory a thread: spilled registers are in one of the two."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True)
    return {key: int(re.search(rf"{key}:(\d+)", done.stdout)[1]) for key in ("REG", "STACK", "LOCAL")}


SHIPPED = [
    (a, name, tile)
    for a in TARGETS
    for table in (configs.TABLES[a], configs.CANDIDATES[a])
    for name, tiles in table.items()
    for tile in tiles
]


@pytest.mark.parametrize(("architecture", "name", "tile"), SHIPPED, ids=lambda v: str(v).replace("Tile", ""))
def test_a_shipped_tile_compiles_well(
    architecture: str, name: str, tile: Tile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(architecture, name, tile)
    assert kernel.metadata.shared <= SHARED[architecture]
    text = kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]
    if "ieee" not in name and name not in NO_PRODUCT:
        small = (
            "gather" in name and tile.m < 64 and architecture in ("sm_90", "sm_100")
        )  # 16 pixels, where theirs want 64
        assert (TENSOR_CORES["sm_80"] if small else TENSOR_CORES[architecture]) in text
    assert_nothing_spilled(kernel, tmp_path)


@pytest.mark.parametrize("near", [False, True])
def test_neighbours_go_through_the_nearest_cache_if_asked(
    near: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of asynchronous copies, those of 16 bytes are "cg", which passes the nearest cache by.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tile = Tile(128, 256, 32, 16, 3, flat=True, near=near)
    text = compiled("sm_90", "forward half", tile).asm["ptx"]
    assert "cp.async.cg" in text  # the weights
    assert ("cp.async.ca" in text) == near


def assert_nothing_spilled(kernel: Any, folder: Path) -> None:
    if "amdgcn" in kernel.asm:
        assert "vgpr_spill_count: 0" in kernel.asm["amdgcn"]
        assert "private_segment_fixed_size: 0" in kernel.asm["amdgcn"]
    else:
        used = resources(kernel, folder)
        assert used["STACK"] == used["LOCAL"] == 0, used


def aggregation(
    architecture: str, name: str, tile: Tile, depth: int = 16, dtype: str = "bf16", maps: str = "bf16"
) -> Any:
    """Compile a kernel of the aggregation for 4 groups of ``depth`` channels and 3x3 taps without the centre."""
    kernel = aggregate.KERNELS[name]
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 4, 0.7, True)
    constants = aggregate.constants_of(4 * depth, window, 4 if dtype == "fp32" else 2)
    shaped = aggregate.shaped(tile, depth, constants["GROUPS_EACH"])
    constants |= dict.fromkeys(aggregate.NEEDS, True) | sides_of(kernel, shaped)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    own = {"grad_input_ptr": "fp32"}
    own |= dict.fromkeys(("offset_ptr", "mask_ptr", "grad_offset_ptr", "grad_mask_ptr"), maps)
    return compiled_for(TARGETS[architecture], kernel, shaped, constants, own, dtype)


AGGREGATION = [(a, name, tile) for a in TARGETS for name, ts in aggregate.TABLES[a].items() for tile in ts]


@pytest.mark.parametrize(("dtype", "maps"), [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")])
@pytest.mark.parametrize(("architecture", "name", "tile"), AGGREGATION, ids=lambda v: str(v).replace("Tile", ""))
def test_a_tile_of_the_aggregation_compiles_well(
    architecture: str, name: str, tile: Tile, dtype: str, maps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = aggregation(architecture, name, tile, dtype=dtype, maps=maps)
    assert kernel.metadata.shared <= SHARED[architecture]
    assert_nothing_spilled(kernel, tmp_path)


@pytest.mark.parametrize("depth", [1, 3, 64, 320])
@pytest.mark.parametrize("name", aggregate.KERNELS)
def test_groups_of_any_size_compile_well(
    name: str, depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for tile in aggregate.TABLES["sm_90"][name]:
        assert_nothing_spilled(aggregation("sm_90", name, tile, depth), tmp_path)


def test_the_aggregation_moves_16_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    text = {
        name: aggregation("sm_90", name, aggregate.TABLES["sm_90"][name][0]).asm["ptx"]
        for name in aggregate.KERNELS
    }
    assert "ld.global.v4.b32" in text["forward"]
    assert "st.global.v4.b32" in text["forward"]
    assert "add.v4.f32" in text["backward"]
