"""The launch of a kernel, on a device or into a compiler's graph, with a tile of a table or with autotuning."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from dcn_ops.triton.tiles import Tile

Constants = dict[str, Any]


class Plan(NamedTuple):
    """A launch without its tensors."""

    function: Any
    grid: Any
    arguments: Constants
    started: dict[Any, Callable[..., None]]  # what ``_again`` starts, by what Triton compiles a kernel for


def planned(
    function: Any,
    tiles: Sequence[Tile],
    grid: Callable[[Constants], tuple[int]],
    sizes: dict[str, int],
    constants: Constants,
    tuned: bool,
) -> Plan:
    """Return the launch of a kernel with the first tile, or with autotuning over all.

    Args:
        function: The kernel.
        tiles: Its tiles, the default first.
        grid: The number of programs, from the sides of a tile.
        sizes: Numbers that change with the image; the kernel takes those that it has a name for.
        constants: What else it takes except tensors and the sides of a tile; likewise.
        tuned: Whether to time the tiles.
    """
    arguments = {name: value for name, value in (sizes | constants).items() if name in function.arg_names}
    if tuned:
        compiled_for = tuple(name for name in arguments if name in constants and name.isupper())
        return Plan(_tuned(function, tuple(tiles), compiled_for, _zeroed(arguments)), grid, arguments, {})
    sides = sides_of(function, tiles[0])
    launched = {"num_warps": tiles[0].warps, "num_stages": tiles[0].stages}
    return Plan(function, grid(sides), arguments | sides | launched, {})


def start(plan: Plan, tensors: dict[str, Tensor]) -> None:
    """Launch a kernel with these tensors, by the names of its pointers."""
    tensor = next(iter(tensors.values()))
    if is_traced(tensor):
        torch.library.wrap_triton(plan.function)[plan.grid](**tensors, **plan.arguments)
        return
    # What Triton compiles a kernel for, beside what the plan is for.
    key = (tensor.get_device(), *[(t.dtype, t.data_ptr() & 15) for t in tensors.values()])
    with _on(tensor.device):
        again = plan.started.get(key)
        if again is not None:
            again(*[tensors[name] for name in plan.function.arg_names[: len(tensors)]])
            return
        compiled = plan.function[plan.grid](**tensors, **plan.arguments)
        again = _again(plan, tensors, compiled)
        if again is not None:
            plan.started[key] = again


def _again(plan: Plan, tensors: dict[str, Tensor], compiled: object) -> Callable[..., None] | None:
    """Return a function that launches a compiled kernel with other tensors, in the order of its arguments.

    It leaves out what Triton does at each call to find that kernel, half of the time of a launch. None if there is
    no such kernel, as in the interpreter, or if more than that has to be done.
    """
    if not isinstance(compiled, CompiledKernel) or callable(plan.grid) or plan.function.pre_run_hooks:
        return None
    names = plan.function.arg_names
    if set(names[: len(tensors)]) != tensors.keys():
        return None
    rest = [plan.arguments[name] for name in names[len(tensors) :]]
    run = compiled[(*plan.grid, 1, 1)[:3]]
    return lambda *pointers: run(*pointers, *rest)


def is_traced(tensor: Tensor) -> bool:
    """Tell whether a compiler traces; its tensors have no data, and their sizes may be symbols."""
    return type(tensor) not in (Tensor, torch.nn.Parameter)


def sides_of(function: Any, tile: Tile) -> dict[str, int]:
    """Return the sides and the form of a tile, by the names of the kernel's constants."""
    sides = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_C": tile.c, "FLAT": tile.flat, "NEAR": tile.near}
    return {name: value for name, value in sides.items() if name in function.arg_names}


def _on(device: torch.device) -> AbstractContextManager[Any]:
    here = device.type == "cpu" or device.index == torch.cuda.current_device()
    return nullcontext() if here else torch.cuda.device(device)


def _zeroed(arguments: Constants) -> tuple[str, ...]:
    """Return the pointers that a kernel adds to, which autotuning sets to zero before each trial.

    Where no gradient of the image is wanted, that pointer is a tensor of the caller, which nothing may change.
    """
    return ("grad_input_ptr",) if arguments.get("NEED_INPUT") else ()


@lru_cache
def _tuned(function: Any, tiles: tuple[Tile, ...], constants: tuple[str, ...], zeroed: tuple[str, ...]) -> Any:
    """Return the kernel with Triton's autotuning over ``tiles``; Triton's disk cache keeps the results."""
    tried = [triton.Config(sides_of(function, t), num_warps=t.warps, num_stages=t.stages) for t in tiles]
    tune = triton.autotune(tried, key=list(constants), reset_to_zero=list(zeroed), cache_results=True)
    return tune(function)
