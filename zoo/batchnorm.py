"""Fold a BatchNorm into the convolution before it, plain or deformable: one operation less, for every runtime."""

from collections import Counter, defaultdict
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcn_ops import DeformConv2d
from zoo.check import check_network
from zoo.layers import DeformConv2dSame

# Exact classes: a subclass may compute something from its weight that doesn't scale with it.
_CONVOLUTIONS = {nn.Conv2d, Conv2dSame, DeformConv2d, DeformConv2dSame}
_NORMS = {nn.BatchNorm2d, BatchNormAct2d}


def fuse_batch_norm_(model: nn.Module, images: Tensor) -> list[str]:
    """Multiply every BatchNorm that follows a convolution into its weight and bias, in place.

    The model runs once on ``images``. A norm is fused if its input is the output of a convolution, plain or
    deformable, that nothing else uses. It becomes an ``nn.Identity``, or, for timm's norms with an activation, that
    activation. A deformable convolution is linear in its weight like a plain one; its offsets are predicted from
    its input, and don't change. Outputs stay the same up to rounding.

    Args:
        model: A network in eval mode, whose statistics no longer change.
        images: [N, C, H, W].

    Returns:
        The names of the fused norms.

    Raises:
        ValueError: If the model is in training mode.
        TypeError: If the model is no network, or images are no tensor.
    """
    check_network(model)
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor of images [N, C, H, W], got {type(images)}")
    if model.training:
        raise ValueError("expected a model in eval mode, whose statistics are fixed; call model.eval() first")
    pairs = _pairs(model, images)
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        _fuse(conv, norm)
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if module is norm:
                model.set_submodule(name, rest.eval())
    return [names[norm] for _, norm in pairs]


class _Uses(TorchDispatchMode):
    """Counts how often each tensor is an argument of an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each convolution with the norm that is the only user of its output."""
    uses = _Uses()
    returned: dict[nn.Module, list[Tensor]] = defaultdict(list)
    taken: dict[nn.Module, list[Tensor]] = defaultdict(list)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        returned[module].append(output)
        uses.count[id(output)] = 0  # an earlier tensor may have had this id; from here on no other tensor has it

    def before(module: nn.Module, args: Any) -> None:
        taken[module].append(args[0])

    shared = {p for p, times in Counter(_held(model)).items() if times > 1}
    convs = [m for m in model.modules() if type(m) in _CONVOLUTIONS and not shared & set(m.parameters())]
    norms = [m for m in model.modules() if type(m) in _NORMS and _is_fixed(m)]
    hooks = [module.register_forward_hook(after) for module in convs]
    hooks += [module.register_forward_pre_hook(before) for module in norms]
    try:
        with torch.no_grad(), uses:
            outputs = tree_leaves(model(images))
    finally:
        for hook in hooks:
            hook.remove()
    source = {id(results[0]): conv for conv, results in returned.items() if len(results) == 1}
    kept = {id(output) for output in outputs}
    inputs = {norm: id(args[0]) for norm, args in taken.items() if len(args) == 1}
    return [
        (source[tensor], norm)  # type: ignore[misc]
        for norm, tensor in inputs.items()
        if tensor in source and uses.count[tensor] == 1 and tensor not in kept
    ]


def _held(model: nn.Module) -> list[nn.Parameter]:
    return [p for module in model.modules() for p in module._parameters.values() if p is not None]


def _is_fixed(norm: Any) -> bool:
    return norm.running_mean is not None and norm.running_var is not None and not norm.training


@torch.no_grad()
def _fuse(conv: nn.Conv2d, norm: Any) -> None:
    scale = (norm.running_var + norm.eps).rsqrt()  # [O]
    shift = -norm.running_mean * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    bias = shift if conv.bias is None else shift + conv.bias * scale
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=conv.weight.requires_grad)
