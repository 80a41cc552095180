"""What a call of an operator costs the CPU that launches it: python benchmarks/gpu_overhead.py.

Microseconds of CPU time of one eager call, forward, and forward and backward with every gradient, in bfloat16.
Without a GPU the tensors are on the CPU, a few numbers each, and Triton's driver is one that compiles for an H100
and launches nothing: all Python of this library, of torch and of Triton runs, only the launch itself doesn't. On a
GPU nothing is replaced, and a call returns when its work is queued.

Beside it: torchvision's ``deform_conv2d`` of one pixel, one channel and one tap, and torch's ``conv2d``. On the CPU
they also compute, but little. ``--profile forward`` prints where the time goes, function by function; ``backward``
likewise.
"""

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo.scripts.storage.markdown import table

import dcn_ops

CALLS, ROUNDS = 200, 15
Call = Callable[[], Tensor]


def calls(device: str) -> dict[str, tuple[Call, list[Tensor]]]:
    """Return what is timed, by name, and the tensors that get a gradient."""
    from torchvision.ops import deform_conv2d as of_torchvision

    torch.manual_seed(0)

    def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        tensor = torch.randn(shape).to(device, dtype)
        if len(shape) == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor.requires_grad_()

    image, offset, mask = leaf(1, 32, 3, 3), leaf(1, 18, 3, 3), leaf(1, 9, 3, 3)
    dense, depthwise, bias = leaf(32, 32, 3, 3), leaf(32, 1, 3, 3), leaf(32)
    rows, moved, scale = (leaf(1, 3, 3, n) for n in (32, 36, 18))
    rows, moved, scale = (t.detach().contiguous().requires_grad_() for t in (rows, moved, scale))
    small = [
        leaf(*shape, dtype=torch.float32)
        for shape in ((1, 1, 1, 1), (1, 2, 1, 1), (1, 1, 1, 1), (1,), (1, 1, 1, 1))
    ]

    def ours(weight: Tensor) -> Call:
        return lambda: dcn_ops.deform_conv2d(image, offset, weight, bias, padding=(1, 1), mask=mask)

    def aggregate() -> Tensor:
        return dcn_ops.dcnv3(rows, moved, scale, 3, 3, 1, 1, 1, 1, 1, 1, 2, 16)

    def torchvision() -> Tensor:
        pixel, moved, weight, bias, scale = small
        return of_torchvision(pixel, moved, weight, bias, mask=scale)

    return {
        "deform_conv2d, dense": (ours(dense), [image, offset, dense, bias, mask]),
        "deform_conv2d, depthwise": (ours(depthwise), [image, offset, depthwise, bias, mask]),
        "dcnv3": (aggregate, [rows, moved, scale]),
        "torchvision": (torchvision, small),
        "conv2d": (lambda: F.conv2d(image, dense, bias, padding=1), [image, dense, bias]),
    }


def step_of(call: Call, leaves: list[Tensor], backward: bool) -> Callable[[], object]:
    """Return a call, or a call and its backward."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return call()

        return forward
    grad = torch.ones_like(call())
    return lambda: torch.autograd.grad(call(), leaves, grad)


def microseconds(step: Callable[[], object], count: int) -> float:
    """Return the fastest round's time of a call: what else runs on the machine only adds."""
    for _ in range(count):
        step()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(count):
            step()
        times.append(time.process_time() - start)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return 1e6 * min(times) / count


def main() -> None:
    """Print a table, or a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("forward", "backward"), help="where the time goes")
    parser.add_argument("--only", default="", help="only calls whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="a few calls")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = 2 if args.dry_run else CALLS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        from without_gpu import driver_of_an_h100

        place = driver_of_an_h100()
    else:
        place = nullcontext()
    dcn_ops.set_implementation("triton")
    with place:
        steps = {
            name: [step_of(call, leaves, backward) for backward in (False, True)]
            for name, (call, leaves) in calls(device).items()
            if args.only in name
        }
        if args.profile:
            profile(steps, args.profile == "backward")
            return
        lines = [
            [name, *(f"{microseconds(step, count):.0f}" for step in of_call)] for name, of_call in steps.items()
        ]
    print(table(["µs on the CPU", "forward", "forward and backward"], lines))


def profile(steps: dict[str, list[Callable[[], object]]], backward: bool) -> None:
    """Print the functions in which the calls spend most time themselves."""
    for name, of_call in steps.items():
        step = of_call[backward]
        step()
        found = cProfile.Profile()
        with found:
            for _ in range(1000):
                step()
        print(name)
        pstats.Stats(found).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
