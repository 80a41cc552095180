"""Speed of deform_aggregate (DCNv3, DCNv4) on a GPU: python benchmarks/aggregate_gpu.py.

On the four maps of InternImage-T, batch 64, bfloat16, groups of 16 channels, 3x3 taps; forward, and forward and
backward with every gradient. Beside it on the same maps: cuDNN's depthwise 7x7 convolution, attention over the
whole map by torch's scaled_dot_product_attention, and the same sums by ``grid_sample`` and by the composition.
Results are first compared with the float64 reference. Each row of ours has its floor: the bytes and flops that no
kernel can avoid.

benchmarks/results/cuda-aggregate.json is written after every map and mode, the most telling first. A run that is
called again with the same commit and GPU goes on where it stopped. ``--dry-run`` does all of it once on a CPU, with
small maps, and writes nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo.scripts import timing
from zoo.scripts.benchmark import gpu
from zoo.scripts.storage.files import atomically
from zoo.scripts.storage.provenance import provenance

import dcn_ops
from dcn_ops.aggregate import reference

sys.path.insert(0, str(Path(__file__).parent))
from aggregate import MAPS, WIDTH, sums, training, window

RESULTS = Path(__file__).parent / "results" / "cuda-aggregate.json"
BATCH, TAPS = 64, 9
MODES = ("training", "forward")
# The first and the third map decide: most bytes, and most blocks of the network.
ORDER = (MAPS[0], MAPS[2], MAPS[1], MAPS[3])
Call = Callable[..., Tensor]
Row = dict[str, Any]


def floor(batch: int, size: int, groups: int, maps_bytes: int, mode: str) -> dict[str, int]:
    """Return the least work of a case in bfloat16.

    Every tensor goes from or to memory once. A sample reads 4 neighbours, 2 flops each for each channel; their dot
    products with the gradient and their shares of it take as many each. The kernel adds these shares atomically.
    """
    positions, channels = batch * size * size, groups * WIDTH
    image, maps = 2 * positions * channels, maps_bytes * positions * groups * TAPS * 3
    shares = 4 * positions * TAPS * channels
    if mode == "forward":
        return {"bytes": 2 * image + maps, "flops": 2 * shares, "atomic_additions": 0}
    return {"bytes": 5 * image + 3 * maps, "flops": 6 * shares, "atomic_additions": shares}


def providers(batch: int, size: int, groups: int, device: str) -> dict[str, tuple[Call, list[Tensor]]]:
    """Return what is timed, by name, with its arguments."""
    torch.manual_seed(0)
    channels, shape = groups * WIDTH, (batch, size, size)
    ours, composition, grid_sample = sums(groups)
    image = torch.randn(*shape, channels).to(device, torch.bfloat16)
    # Odd multiples of 1/32 are exact in bfloat16, and none is an integer, where the gradient jumps.
    offset = (
        torch.randn(*shape, groups * TAPS * 2).mul(16).clamp(-112, 111).floor().mul(2).add(1).div(32).to(device)
    )
    mask = torch.rand(*shape, groups * TAPS).bfloat16().float().to(device)

    def depthwise(image: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(image, weight, padding=3, groups=channels)

    half = [image, offset.bfloat16(), mask.bfloat16()]
    tokens = [torch.randn(batch, groups, size * size, WIDTH).to(device, torch.bfloat16) for _ in range(3)]
    filters = torch.randn(channels, 1, 7, 7).to(device, torch.bfloat16)
    return {
        "ours": (ours, half),
        "ours, float32 maps": (ours, [image, offset, mask]),
        "depthwise 7x7": (depthwise, [image.permute(0, 3, 1, 2), filters]),
        "attention": (F.scaled_dot_product_attention, tokens),
        "grid_sample": (grid_sample, half),
        "composition": (composition, half),
    }


def check(name: str, call: Call, tensors: list[Tensor], groups: int) -> None:
    """Raise ValueError if the output or a gradient for the first image is wrong by more than bfloat16 rounds."""
    first = [tensor[:1].clone().requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in first]
    found, expected = call(*first), reference.forward(*exact, window(groups))
    cotangent = (torch.arange(found.numel(), device=found.device) % 3 - 1).view(found.shape)
    for outputs in zip(
        (found, *torch.autograd.grad(found, first, cotangent.to(found.dtype))),
        (expected, *torch.autograd.grad(expected, exact, cotangent.double())),
        strict=True,
    ):
        error = ((outputs[0].double() - outputs[1]).abs().max() / outputs[1].abs().max()).item()
        if not error <= 1e-2:  # NaN is wrong
            raise ValueError(f"{name} differs from the reference by {error:.1e} of its largest value")


def rows_of(batch: int, size: int, groups: int, mode: str, rounds: int, device: str) -> list[Row]:
    """Check and time the providers of a map in a mode; return a row for each."""
    found = providers(batch, size, groups, device)
    for name, (call, tensors) in found.items():
        if name not in ("depthwise 7x7", "attention"):
            check(name, call, tensors, groups)
    steps: dict[str, Callable[[], object]] = {
        name: training(call, tensors) if mode == "training" else lambda c=call, t=tensors: c(*t)
        for name, (call, tensors) in found.items()
    }
    with torch.set_grad_enabled(mode == "training"):
        times: dict[str, Row]
        if device == "cuda":
            times = gpu.timed(steps, rounds)
        else:
            times = {name: {"ms": time.median} for name, time in timing.interleaved(steps, rounds).items()}
    case = {"map": f"{size}x{size}", "groups": groups, "batch": batch, "mode": mode}
    rows = [{**case, "provider": name, **time} for name, time in times.items()]
    for row in rows:
        if row["provider"].startswith("ours"):
            row["floor"] = floor(batch, size, groups, 4 if "float32" in row["provider"] else 2, mode)
    return rows


def main() -> None:
    """Measure what is not measured yet, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--dry-run", action="store_true", help="the same once on a CPU, with small maps; no results"
    )
    args = parser.parse_args()
    if args.dry_run:
        for size, groups in ORDER:
            for mode in MODES:
                show(rows_of(2, size // 7, groups, mode, 2, "cpu"))
        return
    if not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; on the CPU: python benchmarks/aggregate.py, or --dry-run")
    dcn_ops.set_implementation("triton")  # an error where it can't run
    about = provenance("python benchmarks/aggregate_gpu.py")
    rows = gpu.measured(RESULTS, about)
    for size, groups in ORDER:
        for mode in MODES:
            if any((row["map"], row["mode"]) == (f"{size}x{size}", mode) for row in rows):
                continue
            new = rows_of(BATCH, size, groups, mode, args.rounds, "cuda")
            show(new)
            rows += new
            text = json.dumps({**about, "rows": rows}, indent=1) + "\n"
            atomically(RESULTS, lambda path, text=text: path.write_text(text))


def show(rows: list[Row]) -> None:
    """Print a line for each row."""
    for row in rows:
        print(f"{row['map']:>6} {row['mode']:<8} {row['provider']:<20} {row['ms']:10.3f} ms", flush=True)


if __name__ == "__main__":
    main()
