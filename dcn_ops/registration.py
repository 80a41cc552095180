"""Registration of an operator with autograd, autocast and the compiler, shared by all contracts.

The arguments of an operator are first tensors, then numbers. Its backward takes the gradient of the output, the
same arguments and ``needs``. ``needs`` says for each tensor whether to compute its gradient; the others are None.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dcn_ops.settings import changes, current, restored
from dcn_ops.torch_internals.compiler import is_ahead_of_time, trace_through
from dcn_ops.torch_internals.dispatch import (
    HAS_KEYSETS,
    autocast_keys,
    below_autograd,
    has_device_kernel,
    is_transforming,
)

Kernel = Callable[..., Any]


def register_traces(
    name: str,
    forward: Kernel,
    backward: Kernel,
    library: torch.library.Library,
    prefers_whole: Callable[..., bool] = lambda *_: False,
) -> None:
    """Let the compiler see the aten of an operator and its backward, which Inductor fuses.

    The compiler gets the operators whole in four cases: the caller wants that, somebody registered a kernel for a
    device, sizes are symbols, or ``prefers_whole`` returns True for the arguments. With symbols, Inductor needs
    minutes to simplify the index formulas, and work of an unknown size can't be cut into pieces. A package that is
    compiled ahead of time gets the aten even with symbols, because it runs without this library.
    """

    def of_backward(grad: Tensor, *args: Any) -> bool:
        return prefers_whole(*args[:-1])

    trace_through(f"dcn_ops::{name}", forward, partial(_stays_whole, name, prefers_whole), library)
    trace_through(f"dcn_ops::{name}_backward", backward, partial(_stays_whole, name, of_backward), library)


def _stays_whole(name: str, prefers_whole: Callable[..., bool], *args: Any) -> bool:
    if current().whole_operators or has_foreign_kernel(name, "cpu") or has_foreign_kernel(name, "cuda"):
        return True
    if is_ahead_of_time():
        return False
    sizes = (arg.shape if isinstance(arg, Tensor) else arg if isinstance(arg, Sequence) else [arg] for arg in args)
    return any(isinstance(size, torch.SymInt) for size in chain(*sizes)) or prefers_whole(*args)


def has_foreign_kernel(name: str, device: torch.device | str) -> bool:
    """Tell whether another library registered a kernel of the operator or its backward for a device."""
    kind, ops = torch.device(device).type, torch.ops.dcn_ops
    return has_device_kernel(getattr(ops, name).default, kind) or has_device_kernel(
        getattr(ops, f"{name}_backward").default, kind
    )


class Autograd:
    """Autograd of an operator: it saves only the inputs and computes only the gradients that are needed.

    Under ``torch.func``, forward-mode AD and ``create_graph=True`` the reference is differentiated, to any order.

    Args:
        name: Name of the operator. Its backward is named ``<name>_backward``.
        tensors: How many of its arguments are tensors.
        forward: Kernel of the operator for every device.
        backward: Kernel of its backward for every device.
        reference: The definition, which torch differentiates.
    """

    def __init__(self, name: str, tensors: int, forward: Kernel, backward: Kernel, reference: Kernel) -> None:
        self.name, self.tensors = name, tensors
        self.forward_op = getattr(torch.ops.dcn_ops, name).default
        self.backward_op = getattr(torch.ops.dcn_ops, f"{name}_backward").default
        self.forward_kernel, self.backward_kernel, self.reference = forward, backward, reference

    def register(self, library: torch.library.Library) -> None:
        """Register autograd with the library that defines the operator."""
        if HAS_KEYSETS:
            library.impl(self.name, self._forward, "Autograd", with_keyset=True)
            library.impl(f"{self.name}_backward", self._backward, "Autograd", with_keyset=True)
        else:
            op = f"dcn_ops::{self.name}"
            torch.library.register_autograd(op, self.gradients, setup_context=self.save, lib=library)

    def _forward(self, keyset: Any, *args: Any) -> Any:
        if is_transforming():  # the reference supports every transform
            return self.reference(*args)
        if needs_graph(*args[: self.tensors]):
            return _Function.apply(self, keyset, *args)
        return below_autograd(self.forward_op, self.forward_kernel, keyset, *args)

    def _backward(self, keyset: Any, *args: Any) -> Any:
        """Differentiate the reference where the gradients themselves need a graph, as under create_graph=True."""
        grad, tensors = args[0], args[1 : 1 + self.tensors]
        if not needs_graph(grad, *tensors):
            return below_autograd(self.backward_op, self.backward_kernel, keyset, *args)
        numbers, needs = args[1 + self.tensors : -1], args[-1]
        # Aliases cut the graph: the offset may itself be a function of the input.
        tensors = tuple(None if t is None else t.view_as(t) for t in tensors)
        wanted = [t for t, needed in zip(tensors, needs, strict=True) if needed]
        gradients = torch.autograd.grad(self.reference(*tensors, *numbers), wanted, grad, create_graph=True)
        each = iter(gradients)
        return tuple(next(each) if needed else None for needed in needs)

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
        """Keep what the backward needs."""
        ctx.save_for_backward(*inputs[: self.tensors])
        ctx.numbers = inputs[self.tensors :]
        ctx.settings = changes()

    def gradients(self, ctx: Any, grad: Tensor, needs: Sequence[bool] | None = None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all arguments."""
        needs = ctx.needs_input_grad[: self.tensors] if needs is None else needs
        # Autograd may call this from a thread of its own.
        with restored(ctx.settings) if ctx.settings else nullcontext():
            gradients = self.backward_op(grad, *ctx.saved_tensors, *ctx.numbers, needs)
        return *gradients, *(None for _ in ctx.numbers)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Autograd, keyset: Any, *arguments: Any) -> Any:
        ctx.operator = operator
        operator.save(ctx, arguments)
        return below_autograd(operator.forward_op, operator.forward_kernel, keyset, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[2 : 2 + ctx.operator.tensors]
        return None, None, *ctx.operator.gradients(ctx, grad, needs)


def needs_graph(*tensors: Tensor | None) -> bool:
    """Tell whether autograd records what is done with the tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def register_autocast(name: str, keeps_float32: Sequence[bool], library: torch.library.Library) -> None:
    """Cast tensors to autocast's dtype, but positions and weights of samples to float32.

    Args:
        name: Name of the operator.
        keeps_float32: For each of its tensors, whether it is float32 under autocast.
        library: The library that defines the operator.
    """
    op = getattr(torch.ops.dcn_ops, name).default

    def cast(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
        # Like torch's own rules, don't cast float64 and dtypes that are not floating.
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(to)

    def rule(*args: Any) -> Any:
        device = args[0].device.type
        dtype = torch.get_autocast_dtype(device)
        tensors = [
            cast(tensor, torch.float32 if keeps else dtype)
            for tensor, keeps in zip(args, keeps_float32, strict=False)
        ]
        with torch.autocast(device, enabled=False):
            return op(*tensors, *args[len(tensors) :])

    for key in autocast_keys():
        library.impl(name, rule, key)
