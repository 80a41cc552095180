"""What ``timm.create_model("<name>_dcn")`` converts, for the most common backbones."""

from zoo.config import DCNConfig

# Strides 8 to 32, as in detectron2 and mmdetection for ResNets.
_DEEP = DCNConfig()
# A depthwise 7x7 kernel has 49 offsets, so only every third block at strides 16 and 32.
_LARGE_KERNELS = DCNConfig(stages=(3, 4), every=3, kernels=(7,))
# Inverted residuals: the depthwise convolutions at strides 16 and 32.
_MOBILE = DCNConfig(stages=(3, 4), kinds=("depthwise",))

PRESETS: dict[str, DCNConfig] = {
    "resnet18": _DEEP,
    "resnet34": _DEEP,
    "resnet50": _DEEP,
    "resnet101": _DEEP,
    "resnet50d": _DEEP,
    "wide_resnet50_2": _DEEP,
    "resnext50_32x4d": _DEEP,
    "seresnet50": _DEEP,
    "resnetv2_50": _DEEP,
    "regnety_032": _DEEP,
    "densenet121": _DEEP,
    "hrnet_w18": DCNConfig(stages=(3, 4)),
    "convnext_tiny": _LARGE_KERNELS,
    "convnext_small": _LARGE_KERNELS,
    "convnextv2_tiny": _LARGE_KERNELS,
    "efficientnet_b0": _MOBILE,
    "efficientnet_b3": _MOBILE,
    "tf_efficientnetv2_s": _MOBILE,
    "mobilenetv3_large_100": _MOBILE,
    "mobilenetv2_100": _MOBILE,
}
