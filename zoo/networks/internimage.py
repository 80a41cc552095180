"""``timm.create_model("internimage_tiny")`` and the others: sizes, and the links to the authors' weights."""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from zoo.networks.network import InternImage, checkpoint_filter_fn

_HUB = "https://huggingface.co/OpenGVLab"
_OF_V3 = {
    "origin_url": "https://github.com/OpenGVLab/InternImage",
    "paper_ids": "arXiv:2211.05778",
    "license": "mit",
}
# The model cards of these weights name no licence.
_OF_V4: dict[str, Any] = {"origin_url": "https://github.com/OpenGVLab/DCNv4", "paper_ids": "arXiv:2401.06197"}


def _cfg(file: str, more: dict[str, Any], size: int = 224) -> dict[str, Any]:
    return {
        "url": f"{_HUB}/{file}",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // 32, size // 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": "head",
        **more,
    }


default_cfgs = generate_default_cfgs(
    {
        "internimage_tiny.in1k": _cfg("InternImage/resolve/main/internimage_t_1k_224.pth", _OF_V3),
        "internimage_small.in1k": _cfg("InternImage/resolve/main/internimage_s_1k_224.pth", _OF_V3),
        "internimage_base.in1k": _cfg("InternImage/resolve/main/internimage_b_1k_224.pth", _OF_V3),
        "internimage_large.in22k_ft_in1k_384": _cfg(
            "InternImage/resolve/main/internimage_l_22kto1k_384.pth", _OF_V3, 384
        ),
        "flash_internimage_tiny.in1k": _cfg("DCNv4/resolve/main/flash_intern_image_t_1k_224.pth", _OF_V4),
        "flash_internimage_small.in1k": _cfg("DCNv4/resolve/main/flash_intern_image_s_1k_224.pth", _OF_V4),
        "flash_internimage_base.in1k": _cfg("DCNv4/resolve/main/flash_intern_image_b_1k_224.pth", _OF_V4),
        "flash_internimage_large.in22k_ft_in1k_384": _cfg(
            "DCNv4/resolve/main/flash_internimage_l_22kto1k_384.pth", _OF_V4, 384
        ),
    }
)

_TINY: dict[str, Any] = {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)}
_SCALED: dict[str, Any] = {"post_norm": True, "layer_scale": 1e-5}
_SMALL: dict[str, Any] = {"channels": 80, "depths": (4, 4, 21, 4), "groups": (5, 10, 20, 40), **_SCALED}
_BASE: dict[str, Any] = {"channels": 112, "depths": (4, 4, 21, 4), "groups": (7, 14, 28, 56), **_SCALED}
_LARGE: dict[str, Any] = {"channels": 160, "depths": (5, 5, 22, 5), "groups": (10, 20, 40, 80), **_SCALED}
_FLASH: dict[str, Any] = {"operator": "v4", "branch_bias": False}


def _build(name: str, pretrained: bool, arguments: dict[str, Any], given: dict[str, Any]) -> Any:
    return build_model_with_cfg(
        InternImage,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**arguments, **given},
    )


@register_model
def internimage_tiny(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-T: 30 M parameters."""
    return _build("internimage_tiny", pretrained, _TINY, kwargs)


@register_model
def internimage_small(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-S: 50 M parameters."""
    return _build("internimage_small", pretrained, _SMALL, kwargs)


@register_model
def internimage_base(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-B: 97 M parameters."""
    return _build("internimage_base", pretrained, _BASE, kwargs)


@register_model
def internimage_large(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """InternImage-L: 223 M parameters, for images of 384 pixels."""
    return _build("internimage_large", pretrained, {**_LARGE, "offset_scale": 2.0}, kwargs)


@register_model
def flash_internimage_tiny(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-T: 30 M parameters."""
    return _build("flash_internimage_tiny", pretrained, {**_TINY, **_FLASH}, kwargs)


@register_model
def flash_internimage_small(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-S: 50 M parameters."""
    return _build("flash_internimage_small", pretrained, {**_SMALL, **_FLASH, "dw_kernel_size": 3}, kwargs)


@register_model
def flash_internimage_base(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-B: 97 M parameters."""
    own = {"dw_kernel_size": 3, "offset_scale": 0.5}
    return _build("flash_internimage_base", pretrained, {**_BASE, **_FLASH, **own}, kwargs)


@register_model
def flash_internimage_large(pretrained: bool = False, **kwargs: Any) -> InternImage:
    """FlashInternImage-L: 223 M parameters, for images of 384 pixels."""
    own = {"dw_kernel_size": 3, "offset_scale": 2.0, "branch_bias": True}
    return _build("flash_internimage_large", pretrained, {**_LARGE, **_FLASH, **own}, kwargs)
