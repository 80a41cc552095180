"""Which implementation a call takes: the first in order of preference that does not refuse it."""

from torch import Tensor

from dcn_ops.aggregate.kernels import bag, inductor
from dcn_ops.aggregate.kernels.kernel import Kernel, Problem
from dcn_ops.settings import current

EAGER: tuple[Kernel, ...] = (bag,)
# Compiled, many small ATen kernels become a few loops.
TRACED: tuple[Kernel, ...] = (inductor,)


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
        ValueError: Where the one that ``set_implementation`` asks for is not there or refuses the call.
    """
    wanted = "auto" if deterministic else current().implementation
    refusal: str | None = f"deform_aggregate has no implementation {wanted!r}; take another"
    for kernel in TRACED if traced else EAGER:
        if wanted not in ("auto", kernel.IMPLEMENTATION) or (deterministic and not kernel.DETERMINISTIC):
            continue
        refusal = kernel.refuses(problem, grad)
        if refusal is None:
            return kernel
    raise ValueError(f'{refusal}, or call dcn_ops.set_implementation("auto")')
