"""Which implementation a call takes: the first in order of preference that does not refuse it."""

from collections.abc import Iterator

from torch import Tensor

from dcn_ops.conv.kernels import columns, depthwise, gpu, inductor, tiny
from dcn_ops.conv.kernels.kernel import Kernel, Problem
from dcn_ops.settings import current

EAGER: tuple[Kernel, ...] = (gpu, tiny, depthwise, columns)
# Compiled, many small ATen kernels become a few, and calls cost nothing.
TRACED: tuple[Kernel, ...] = (gpu, inductor, depthwise, columns)


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
    # As ``refusals``, without what a generator costs a small call.
    wanted, refusal = "auto" if deterministic else current().implementation, None
    for kernel in TRACED if traced else EAGER:
        if wanted in ("auto", kernel.IMPLEMENTATION) and (kernel.DETERMINISTIC or not deterministic):
            refusal = kernel.refuses(problem, grad)
            if refusal is None:
                return kernel
    raise ValueError(f'{refusal}, or call dcn_ops.set_implementation("auto")')


def refusals(
    problem: Problem, grad: Tensor | None = None, *, traced: bool = False, deterministic: bool = False
) -> Iterator[tuple[Kernel, str | None]]:
    """Yield each implementation that the settings allow, with its reason against the call; None is none."""
    wanted = "auto" if deterministic else current().implementation
    for kernel in TRACED if traced else EAGER:
        if wanted in ("auto", kernel.IMPLEMENTATION) and (kernel.DETERMINISTIC or not deterministic):
            yield kernel, kernel.refuses(problem, grad)
