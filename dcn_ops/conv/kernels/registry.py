"""Which implementation a call takes: the first in order of preference that does not refuse it."""

from functools import cache

from torch import Tensor

from dcn_ops.conv.kernels import columns, cpu, depthwise, gpu, inductor, tiny, traced
from dcn_ops.conv.kernels.kernel import Kernel
from dcn_ops.conv.problem import Problem
from dcn_ops.settings import current

EAGER: tuple[Kernel, ...] = (gpu, cpu, tiny, depthwise, columns)
# Compiled, many small ATen kernels become a few, and calls cost nothing. The native kernel can't be traced.
TRACED: tuple[Kernel, ...] = (gpu, inductor, depthwise, traced)


def choose(
    problem: Problem, grad: Tensor | None = None, *, traced: bool = False, deterministic: bool = False
) -> Kernel:
    """Return the implementation that a call takes.

    Args:
        problem: The call.
        grad: Of the backward, the gradient of the output.
        traced: Whether a compiler traces what the implementation does.
        deterministic: Whether the gradient of the input must have the same bits in every run.

    Raises:
        ValueError: Where the one that ``set_implementation`` asks for refuses the call.
    """
    refusal: str | None = "a package that is compiled ahead of time can't call the native kernel"
    for kernel in allowed(current().implementation, traced, deterministic):
        refusal = kernel.refuses(problem, grad)
        if refusal is None:
            return kernel
    raise ValueError(f'{refusal}, or call dcn_ops.set_implementation("auto")')


def calls_native(problem: Problem) -> bool:
    """Tell whether an eager call takes the native kernel, or must; a compiler's tensors, without data, will do."""
    implementation = current().implementation
    return implementation == "native" or (cpu in allowed(implementation, False) and cpu.refuses(problem) is None)


@cache
def allowed(implementation: str, traced: bool, deterministic: bool = False) -> tuple[Kernel, ...]:
    """Return the implementations that are asked, in order; a deterministic one may be of any name."""
    if deterministic:
        return tuple(kernel for kernel in in_order(traced) if kernel.DETERMINISTIC)
    return tuple(kernel for kernel in in_order(traced) if implementation in ("auto", kernel.IMPLEMENTATION))


def in_order(traced: bool) -> tuple[Kernel, ...]:
    """Return all implementations, in order of preference."""
    return TRACED if traced else EAGER
