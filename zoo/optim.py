"""Parameter groups for a converted network: the offset predictors learn more slowly."""

from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn

from dcn_ops import DCNv3, DCNv4, DeformConv2d
from zoo.check import check_network


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.0,
    offset_lr_scale: float = 0.1,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups for ``timm.optim.create_optimizer_v2(..., param_group_fn=...)``.

    As in timm, biases, norms and the parameters in the network's ``no_weight_decay`` get no weight decay. Neither
    do the offset predictors. They also have ``lr_scale``, which timm's schedulers respect. Deformable convolutions
    are commonly trained with a tenth of the learning rate on their offsets (Dai et al., 2017, and mmdetection's
    configs).

    Args:
        model: The network; parameters that require no gradient are ignored.
        weight_decay: Weight decay of the other parameters.
        offset_lr_scale: The predictors' learning rate, relative to other parameters in the same layer.
        layer_decay: Scales the learning rate of each layer by this to the power of its distance from the head, as
            timm's group_matcher counts layers; None for one rate.

    Raises:
        TypeError: If the model is no network.
    """
    check_network(model)
    offsets = {
        parameter
        for layer in model.modules()
        if isinstance(layer, DeformConv2d | DCNv3 | DCNv4)
        for parameter in layer.predictor_parameters()
    }
    excused: Any = getattr(model, "no_weight_decay", set)()
    if layer_decay is not None:
        grouped = param_groups_layer_decay(model, weight_decay, excused, layer_decay=layer_decay)
    else:
        light = {p for name, p in model.named_parameters() if p.ndim <= 1 or name in excused}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        grouped = [
            {"params": [p for p in trained if p not in light], "weight_decay": weight_decay},
            {"params": [p for p in trained if p in light], "weight_decay": 0.0},
        ]
    groups: list[dict[str, Any]] = [
        {**group, "params": [p for p in group["params"] if p not in offsets]} for group in grouped
    ]
    scales: dict[float, list[nn.Parameter]] = {}
    for group in grouped:
        found = [p for p in group["params"] if p in offsets]
        scales.setdefault(group.get("lr_scale", 1.0), []).extend(found)
    groups += [
        {"params": parameters, "weight_decay": 0.0, "lr_scale": scale * offset_lr_scale}
        for scale, parameters in scales.items()
    ]
    return [group for group in groups if group["params"]]
