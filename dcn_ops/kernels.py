"""Implementations of an operator: their interface, and the choice of one for a call."""

from functools import cache
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dcn_ops.settings import current, settings

_Problem = TypeVar("_Problem")  # the checked arguments of a call
_Gradients = TypeVar("_Gradients", bound=tuple[Tensor | None, ...])  # what the backward returns
_Taken = TypeVar("_Taken", contravariant=True)
_Given = TypeVar("_Given", covariant=True)


class Kernel(Protocol[_Taken, _Given]):
    """An implementation: a module that has these names."""

    @property
    def NAME(self) -> str:
        """Its name in messages and in ``dcn_ops.explain``."""

    @property
    def IMPLEMENTATION(self) -> str:
        """The name that ``dcn_ops.set_implementation`` takes; several may share it."""

    @property
    def DETERMINISTIC(self) -> bool:
        """Whether the gradient of the input has the same bits in every run."""

    def refuses(self, problem: _Taken, grad: Tensor | None = None) -> str | None:
        """Return why it can't run this, or why another is better; None if it accepts the call."""

    def forward(self, problem: _Taken) -> Tensor:
        """Return the output, in the input's dtype."""

    def backward(self, grad: Tensor, problem: _Taken, needs: list[bool]) -> _Given:
        """Return the gradients of the operator's tensors; None for each that ``needs`` leaves out."""


class Registry(Generic[_Problem, _Gradients]):
    """The implementations of an operator, in order of preference.

    Args:
        eager: The implementations of eager calls.
        traced: The implementations that a compiler traces.
        repeating: Implementations that are asked only, and first, for a gradient of the input that must have the
            same bits in every run.
        missing: The error message if ``set_implementation`` asks for one that doesn't exist; ``{}`` is its name.
    """

    def __init__(
        self,
        eager: tuple[Kernel[_Problem, _Gradients], ...],
        traced: tuple[Kernel[_Problem, _Gradients], ...],
        missing: str,
        repeating: tuple[Kernel[_Problem, _Gradients], ...] = (),
    ) -> None:
        self._eager, self._traced, self._missing, self._repeating = eager, traced, missing, repeating
        self.allowed = cache(self._allowed)

    def choose(
        self, problem: _Problem, grad: Tensor | None = None, *, traced: bool = False, deterministic: bool = False
    ) -> Kernel[_Problem, _Gradients]:
        """Return the implementation for a call: the first one that accepts it.

        Args:
            problem: The call.
            grad: The gradient of the output, for a backward.
            traced: Whether a compiler traces what the implementation does.
            deterministic: Whether the gradient of the input must have the same bits in every run.

        Raises:
            ValueError: If the one that ``set_implementation`` asks for doesn't exist or refuses the call.
        """
        wanted, refusal = current().implementation, None
        for kernel in self.allowed(wanted, traced, deterministic):
            refusal = kernel.refuses(problem, grad)
            if refusal is None:
                return kernel
        reason = refusal or self._missing.format(repr(wanted))
        raise ValueError(f'{reason}, or call dcn_ops.set_implementation("auto")')

    def backward(
        self, grad: Tensor, problem: _Problem, needs: list[bool], *, traced: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of a call; of the operator's tensors, the input is the first.

        Args:
            grad: The gradient of the output.
            problem: The call.
            needs: Which gradients to compute; the others are None.
            traced: Whether a compiler traces what the implementation does.

        Raises:
            ValueError: As ``choose``.
        """
        kernel = self.choose(problem, grad, traced=traced)
        if not (needs[0] and not kernel.DETERMINISTIC and torch.are_deterministic_algorithms_enabled()):
            return kernel.backward(grad, problem, needs)
        # The order of its additions changes from run to run, and so do the last bits of the gradient of the input.
        sorting = self.choose(problem, grad, traced=traced, deterministic=True)
        others = [False, *needs[1:]]
        of_input = sorting.backward(grad, problem, [True, *[False] * len(others[1:])])[0]
        return of_input, *kernel.backward(grad, problem, others)[1:]

    def takes_native(self, problem: _Problem) -> bool:
        """Tell whether an eager call can take the native kernel, or must; tensors of a compiler, without data, do.

        A call that the native kernel accepts only when asked for by name counts as well: it runs in the same time
        as one node of a compiled graph, and compiles faster.
        """
        wanted = current().implementation
        if wanted == "native":
            return True
        asked = [kernel for kernel in self.allowed(wanted, False) if kernel.IMPLEMENTATION == "native"]
        with settings(implementation="native"):
            return any(kernel.refuses(problem) is None for kernel in asked)

    def _allowed(
        self, implementation: str, traced: bool, deterministic: bool = False
    ) -> tuple[Kernel[_Problem, _Gradients], ...]:
        """Return the implementations to ask, in order; deterministic ones may have any name."""
        kernels = self.in_order(traced)
        if deterministic:
            return (*self._repeating, *(kernel for kernel in kernels if kernel.DETERMINISTIC))
        return tuple(kernel for kernel in kernels if implementation in ("auto", kernel.IMPLEMENTATION))

    def in_order(self, traced: bool) -> tuple[Kernel[_Problem, _Gradients], ...]:
        """Return all implementations, in order of preference."""
        return self._traced if traced else self._eager
