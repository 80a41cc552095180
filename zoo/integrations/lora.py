"""LoRA adapters of peft for deformable convolutions.

By itself, peft takes a ``DeformConv2d`` for a convolution and builds its adapters as layers of the same class: with
offset predictors of their own, which no merge can put into the weight. The adapters here sample where the layer
samples: ``W + s B A`` is the merged weight, as of an ordinary convolution.

Legend: N batch, C and O channels in and out, r rank, Ho x Wo output size.
"""

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Conv2d
from torch import Tensor, nn

from dcn_ops import DeformConv2d


def register_lora(config: LoraConfig) -> LoraConfig:
    """Make a config of peft adapt deformable convolutions by LoRA; returns the same config.

    peft doesn't save this with an adapter. To load one, register its config again:
    ``PeftModel.from_pretrained(model, folder, config=register_lora(LoraConfig.from_pretrained(folder)))``.

    Raises:
        TypeError: If it is no ``LoraConfig``: other methods of peft compute with a plain convolution.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(
            f"expected a peft.LoraConfig, got {type(config).__name__}; leave the deformable layers out of other "
            "methods, by exclude_modules"
        )
    # peft's own entrance for such layers. It has an underscore, but stands in the documentation for developers.
    config._register_custom_module({DeformConv2d: LoraDeformConv2d})
    return config


class LoraDeformConv2d(Conv2d):  # type: ignore[misc]  # peft's types are not read
    """A deformable convolution with adapters; offsets and masks stay those of the layer.

    peft makes it, as ``register_lora`` tells. It merges, unmerges and saves as peft's other adapters do.

    Raises:
        ValueError: For a grouped layer, whose weight can't hold the product of the two matrices, or one that
            standardises its weight.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        layer: Any = base_layer
        if hasattr(layer, "get_base_layer"):
            layer = layer.get_base_layer()
        if layer.groups > 1:
            raise ValueError(
                f"LoRA needs convolutions with groups=1, got {layer}; leave it out, by target_modules or "
                "exclude_modules"
            )
        if type(layer).filters is not DeformConv2d.filters:
            raise ValueError(
                f"LoRA can't be merged into {type(layer).__name__}, which standardises its weight; leave it out, "
                "by target_modules or exclude_modules"
            )
        super().__init__(base_layer, adapter_name, *args, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Only LoRA itself: peft refuses variants such as DoRA, with their names."""
        return {(): None}

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter: A [r, C, kh, kw] samples as the layer does, B [O, r, 1, 1] is a plain convolution."""
        super().update_layer(adapter_name, *args, **kwargs)
        layer = self.get_base_layer()
        made = self.lora_A[adapter_name]
        sampled = type(made).from_conv2d(
            made.to_conv2d(), offset_groups=layer.offset_groups, modulated=layer.modulated, predict_offsets=False
        )
        # peft passes neither.
        sampled.dilation, sampled.padding_mode = layer.dilation, layer.padding_mode
        self.lora_A[adapter_name] = sampled
        self.lora_B[adapter_name] = self.lora_B[adapter_name].to_conv2d()

    def forward(self, x: Tensor, offset: Tensor | None = None, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return [N, O, Ho, Wo]; the layer and its adapters sample at the same locations."""
        if kwargs.get("adapter_names") is not None:
            raise ValueError("deformable layers have one adapter for the whole batch, got adapter_names; drop them")
        if self.disable_adapters or self.merged:
            return super().forward(x, offset, mask, **kwargs)
        if offset is None:
            offset, mask = self.get_base_layer().offsets(x)
        result = self.base_layer(x, offset, mask)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.lora_A:
                sampled = self.lora_A[name]
                image = self.lora_dropout[name](self._cast_input_dtype(x, sampled.weight.dtype))
                maps = (None if map is None else map.to(image.dtype) for map in (offset, mask))
                result = result + self.lora_B[name](sampled(image, *maps)) * self.scaling[name]
        return result.to(dtype)
