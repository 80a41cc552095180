"""Parameter groups for a converted network: the offset predictors learn more slowly."""

from typing import Any

from torch import nn

from dcn_ops import DeformConv2d


def param_groups(model: nn.Module, weight_decay: float = 0.0, offset_lr_scale: float = 0.1) -> list[dict[str, Any]]:
    """Return parameter groups for ``timm.optim.create_optimizer_v2(..., param_group_fn=...)``.

    As in timm, biases, norms and what the network's ``no_weight_decay`` names get no weight decay; neither do the
    offset predictors, which additionally have ``lr_scale``, honoured by timm's schedulers. Deformable
    convolutions are commonly trained with a tenth of the learning rate on their offsets (Dai et al., 2017, and
    mmdetection's configs).
    """
    offsets = {
        parameter
        for layer in model.modules()
        if isinstance(layer, DeformConv2d)
        for parameter in layer.predictor_parameters()
    }
    excused: Any = getattr(model, "no_weight_decay", set)()
    light = {p for name, p in model.named_parameters() if p.ndim <= 1 or name in excused}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in trained if parameter not in offsets]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p not in light], "weight_decay": weight_decay},
        {"params": [p for p in others if p in light], "weight_decay": 0.0},
        {"params": [p for p in trained if p in offsets], "weight_decay": 0.0, "lr_scale": offset_lr_scale},
    ]
    return [group for group in groups if group["params"]]
