#!/usr/bin/env bash
# Triton 3.8.0: on sm_100 (B200) a product of a program with 16 warps is compiled without the tensor cores of that
# generation, without a word.
#
# A good guess: the number of warps changes how a tile is divided, not which instruction multiplies. On sm_90 16 warps
# use `wgmma` as 4 and 8 do, so on sm_100 they use `tcgen05.mma`.
#
# What happens: with 4 and 8 warps the code has `tcgen05.mma`; with 16 it has `mma.sync`, the instruction of sm_80. The
# result is right, so only a profile or the PTX shows it.
#
# Why it matters: a kernel that gathers its operand, such as a deformable convolution, has 16 warps on sm_90, because
# the addresses take registers. Its table of tiles can't be taken over for sm_100. A GPU isn't needed to see this:
# Triton compiles for any target.
#
# Output seen (Python 3.11, x86_64 Linux):
#   sm_90, 4 warps: wgmma.mma_async
#   sm_90, 8 warps: wgmma.mma_async
#   sm_90, 16 warps: wgmma.mma_async
#   sm_100, 4 warps: tcgen05.mma
#   sm_100, 8 warps: tcgen05.mma
#   sm_100, 16 warps: mma.sync
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet triton==3.8.0

export TRITON_CACHE_DIR="$folder/cache"
cat > "$folder/product.py" <<'PROGRAM'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(a_ptr, b_ptr, c_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    sums = tl.zeros((M, N), tl.float32)
    for start in range(0, depth, K):
        a = tl.load(a_ptr + rows[:, None] * depth + start + inner)
        b = tl.load(b_ptr + (start + inner)[:, None] * N + columns)
        sums = tl.dot(a, b, sums)
    tl.store(c_ptr + rows[:, None] * N + columns, sums)


SIDES = {"M": 128, "N": 256, "K": 64}
SIGNATURE = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "depth": "i32"} | dict.fromkeys(SIDES, "constexpr")
ALIGNED = {(i,): [["tt.divisibility", 16]] for i in range(4)}
INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")

found = {}
for architecture in (90, 100):
    for warps in (4, 8, 16):
        source = ASTSource(product, SIGNATURE, SIDES, ALIGNED)
        options = {"num_warps": warps, "num_stages": 3}
        ptx = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]
        found[architecture, warps] = [name for name in INSTRUCTIONS if name in ptx]
        print(f"sm_{architecture}, {warps} warps: {', '.join(found[architecture, warps])}")
expected = {(90, warps): ["wgmma.mma_async"] for warps in (4, 8, 16)}
expected |= {(100, 4): ["tcgen05.mma"], (100, 8): ["tcgen05.mma"], (100, 16): ["mma.sync"]}
if found != expected:
    raise SystemExit("The behaviour has changed.")
PROGRAM
"$folder/venv/bin/python" "$folder/product.py"
