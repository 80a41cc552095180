"""Check every provider, then time it: providers alternate within every round, and the median counts.

On a shared machine only ratios within one run are meaningful.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcn_ops.conv import reference

from .. import timing
from . import gpu
from .cases import Case
from .providers import FLOORS, PROVIDERS, UnsupportedError

Row = dict[str, Any]
Step = Callable[[], Any]
MODES = ("forward", "training")  # training: forward and backward, with every gradient
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}  # of the largest value


def steps_of(
    case: Case, mode: str, providers: list[str], sigma: float, device: str
) -> tuple[dict[str, Step], list[Row]]:
    """Return what to time, by provider, and a row with the reason for each wrong or unsupported provider."""
    tensors = case.inputs(sigma, device)
    if mode == "training":
        tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    exact = None
    steps, refused = {}, []
    for name in providers:
        row = {"case": case.name, "mode": mode, "provider": name}
        try:
            step = _step(PROVIDERS[name](case, tensors), tensors, mode)
            if name not in FLOORS:
                exact = exact or _exact(case, tensors, mode)
                _check(step(), exact, TOLERANCE[case.dtype])
            steps[name] = step
        except UnsupportedError as reason:
            refused.append({**row, "refused": str(reason)})
        except WrongError as error:
            refused.append({**row, "wrong": str(error)})
    return steps, refused


class WrongError(Exception):
    """The result differs from the reference."""


def _step(function: Callable[[], Tensor], tensors: Mapping[str, Tensor], mode: str) -> Step:
    if mode == "forward":

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"output": function()}

        return forward

    leaves = list(tensors.values())
    cotangent = _cotangent(function())

    def training() -> dict[str, Tensor]:
        output = function()
        gradients = torch.autograd.grad(output, leaves, cotangent, allow_unused=True)
        return {"output": output, **dict(zip(tensors, gradients, strict=True))}

    return training


def _cotangent(output: Tensor) -> Tensor:
    # Zero except for the first image, so that the float64 reference needs only that image.
    cotangent = torch.zeros_like(output)
    cotangent[0] = 1 - torch.arange(output[0].numel(), device=output.device).view(output[0].shape) % 3
    return cotangent


def _exact(case: Case, tensors: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    first = {n: (t if n == "weight" else t[:1]).detach().double().requires_grad_() for n, t in tensors.items()}
    output = reference.forward(first["input"], first["offset"], first["weight"], None, first["mask"], case.conv)
    if mode == "forward":
        return {"output": output.detach()}
    gradients = torch.autograd.grad(output, list(first.values()), _cotangent(output))
    return {"output": output.detach(), **dict(zip(first, gradients, strict=True))}


def _check(actual: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in exact.items():
        got = actual[name].detach() if name == "weight" else actual[name][:1].detach()
        error = (got.double() - expected).abs().max().item() / expected.abs().max().item()
        if not error <= tolerance:  # NaN is wrong
            raise WrongError(f"{name} differs by {error:.1e} of its largest value; {tolerance:.0e} is allowed")


def timed(steps: dict[str, Step], rounds: int, device: str, seconds: float = 0.02) -> dict[str, Row]:
    """Return the median of each step's time in milliseconds and its quartiles."""
    found = timing.interleaved(steps, rounds, device, seconds)
    return {name: {"ms": time.median, "quartiles": list(time.quartiles)} for name, time in found.items()}


def rows_of(case: Case, mode: str, providers: list[str], sigma: float, device: str, rounds: int) -> list[Row]:
    """Check and time a case; return a row for each provider, with its ratio to ``conv2d``."""
    steps, refused = steps_of(case, mode, providers, sigma, device)
    clock = partial(timed, device=device) if device == "cpu" else gpu.timed
    results = clock(steps, rounds=rounds) if steps else {}
    floor = results.get("conv2d", {}).get("ms")
    rows = [{"case": case.name, "mode": mode, "provider": name, **result} for name, result in results.items()]
    for row in rows:
        row["ratio"] = row["ms"] / floor if floor else None
    return [{"threads": torch.get_num_threads(), **row} for row in rows + refused]
