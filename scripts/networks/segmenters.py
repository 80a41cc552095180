"""segmentation_models_pytorch's segmenters on a timm encoder."""

from pathlib import Path
from typing import Any

from torch import nn

# The arguments of the width, which each library class names differently.
_WIDTH = {
    "unet": lambda channels: {"decoder_channels": [channels // 2**i for i in range(5)]},
    "smp_fpn": lambda channels: {
        "decoder_pyramid_channels": channels, "decoder_segmentation_channels": channels // 2,
    },
    "deeplabv3plus": lambda channels: {"decoder_channels": channels},
    "upernet": lambda channels: {"decoder_channels": channels},
}  # fmt: skip
_CLASS = {"unet": "Unet", "smp_fpn": "FPN", "deeplabv3plus": "DeepLabV3Plus", "upernet": "UPerNet"}
SEGMENTERS = tuple(_CLASS)
CLASSIFIER = "segmentation_head.0"


def create(
    name: str, arguments: dict[str, Any], channels: int, kwargs: dict[str, Any], pretrained: bool, body: Path | None
) -> nn.Module:
    """Build a segmenter that returns scores [N, classes, H, W] of images [N, C, H, W].

    Args:
        name: One of ``SEGMENTERS``.
        arguments: Of ``timm.create_model``.
        channels: Width of the decoder; its widest map in a U-Net.
        kwargs: Further arguments of the library's class.
        pretrained: Load timm's weights into the encoder.
        body: Instead: a file of weights of the whole timm network.

    Raises:
        ValueError: If the library is not installed, or the channels don't fit.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ValueError(f'head.name={name} needs pip install "dcn-zoo[detect]": {error}') from error
    step = 64 if name == "smp_fpn" else 16  # groups of a norm, halvings of a width
    if channels < step or channels % step:
        raise ValueError(f"expected head.channels as a multiple of {step} for {name}, got {channels}")
    rest = {k: v for k, v in arguments.items() if k not in ("model_name", "num_classes", "in_chans")}
    if body is not None:
        rest["pretrained_cfg_overlay"] = {"file": str(body)}
    return getattr(smp, _CLASS[name])(
        encoder_name=f"tu-{arguments['model_name']}",
        encoder_weights=True if pretrained or body is not None else None,
        in_channels=arguments["in_chans"],
        classes=arguments["num_classes"],
        **{**_WIDTH[name](channels), **rest, **kwargs},
    )
