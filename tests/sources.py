"""Other libraries' layers and networks, written from their description: torchvision's operator, masks σ(·).

They are the oracles of tests/migration. Their attributes, child modules and state_dict keys are the sources' own.
"""

import re
from collections import OrderedDict

import torch
import torchvision
from torch import nn


class Layer(nn.Module):
    """A deformable layer of another library; a subclass per class of theirs."""

    predictor: str | None = None  # name of the convolution that predicts
    maps = 3  # predicted for each tap: 3 in v2, 2 in v1
    groups_name = "deform_groups"

    def __init__(
        self,
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        stride=1,
        padding=1,
        dilation=1,
        groups=1,
        offset_groups=1,
        bias=True,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = (kernel_size, kernel_size), (stride, stride)
        self.padding, self.dilation = (padding, padding), (dilation, dilation)
        setattr(self, self.groups_name, offset_groups)
        fan = in_channels // groups * kernel_size**2
        self.weight = nn.Parameter(
            torch.randn(out_channels, in_channels // groups, kernel_size, kernel_size) / fan**0.5
        )
        self.register_parameter("bias", nn.Parameter(torch.randn(out_channels)) if bias else None)
        if self.predictor:
            conv = self.convolution(offset_groups)
            nn.init.normal_(conv.weight, std=0.3 / fan**0.5)
            nn.init.normal_(conv.bias)
            setattr(self, self.predictor, conv)

    def convolution(self, offset_groups):
        outputs = self.maps * offset_groups * self.kernel_size[0] * self.kernel_size[1]
        numbers = (self.kernel_size, self.stride, self.padding, self.dilation)
        return nn.Conv2d(self.in_channels, outputs, *numbers)

    def predicted(self, x):
        out = getattr(self, self.predictor)(x)
        if self.maps == 2:
            return out, None
        one, two, mask = out.chunk(3, 1)
        return torch.cat((one, two), 1), mask.sigmoid()

    def convolved(self, x, offset, mask=None):
        numbers = (self.stride, self.padding, self.dilation)
        return torchvision.ops.deform_conv2d(x, offset, self.weight, self.bias, *numbers, mask)


class Outside(Layer):
    def forward(self, x, offset, mask=None):
        return self.convolved(x, offset, mask)


class Predicting(Layer):
    predictor = "conv_offset"

    def forward(self, x):
        return self.convolved(x, *self.predicted(x))


class Beside(Layer):
    predictor = "conv_offset"
    groups_name = "deformable_groups"

    def forward(self, x, feature):
        return self.convolved(x, *self.predicted(feature))


class Normed(Outside):
    """Of detectron2: with a norm and an activation."""

    groups_name = "deformable_groups"

    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x, offset, mask=None):
        x = super().forward(x, offset, mask)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def of_class(name, base, **attributes):
    return type(name, (base,), attributes)


MMCV_V1 = of_class("DeformConv2dPack", Predicting, maps=2)
MMCV_V2 = of_class("ModulatedDeformConv2dPack", Predicting)
FORK = of_class("DCN", Predicting, predictor="conv_offset_mask", groups_name="deformable_groups")
BASICSR_V1 = of_class("DeformConvPack", Predicting, maps=2, groups_name="deformable_groups")
BASICSR_V2 = of_class("ModulatedDeformConvPack", Predicting, groups_name="deformable_groups")
PREDICTING = {
    "mmcv v1": MMCV_V1,
    "mmcv v2": MMCV_V2,
    "fork": FORK,
    "BasicSR v1": BASICSR_V1,
    "BasicSR v2": BASICSR_V2,
}
OUTSIDE = {
    "torchvision": of_class("DeformConv2d", Outside, groups_name="unknown"),
    "mmcv v2": of_class("ModulatedDeformConv2d", Outside),
    "fork": of_class("DCNv2", Outside, groups_name="deformable_groups"),
    "detectron2 v1": of_class("DeformConv", Normed),
    "detectron2 v2": of_class("ModulatedDeformConv", Normed),
}
EDVR = of_class("DCNv2Pack", Beside)


def resnet(layer, offset_groups=1, caffe=False, deep=False, layers=(3, 4, 6, 3), bias=False, **kwargs):
    """Return torchvision's ResNet with deformable conv2 at strides 8 to 32 and perturbed norms, in float64."""
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, layers, num_classes=4, **kwargs)
    if deep:
        model.conv1 = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Conv2d(32, 64, 3, 1, 1, bias=False),
        )
    for name, conv in list(model.named_modules()):
        if re.fullmatch(r"layer[234]\.\d+\.conv2", name):
            block = model.get_submodule(name.rpartition(".")[0])
            if caffe and conv.stride == (2, 2):
                block.conv1.stride, conv.stride = (2, 2), (1, 1)
            numbers = (conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0], conv.groups)
            made = layer(conv.in_channels, conv.out_channels, *numbers, offset_groups, bias)
            model.set_submodule(name, made)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, mean=float(tensor is module.weight), std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def features(model, x):
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    found = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        found.append(x := stage(x))
    return found


def renamed(weights, *rules, prefix=""):
    """Return a state_dict with names changed by pairs of a pattern and its replacement."""
    found = OrderedDict()
    for key, value in weights.items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        found[prefix + key] = value
    return found


def of_detectron2(weights):
    """Return the names of detectron2's FPN backbone; its FrozenBatchNorm counts no batches."""
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.") and "num_b" not in key}
    return renamed(
        weights,
        (r"^conv1\.", "stem.conv1."),
        (r"^bn1\.", "stem.conv1.norm."),
        (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"\.conv2\.conv_offset\.", ".conv2_offset."),
        prefix="backbone.bottom_up.",
    )


def of_mmdetection(weights):
    """Return a Faster R-CNN's state_dict: backbone, FPN and heads with the shapes of the R50 configs."""
    weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    shapes = {"rpn_head.rpn_conv": (256, 256, 3, 3), "rpn_head.rpn_cls": (3, 256, 1, 1)}
    shapes |= {"rpn_head.rpn_reg": (12, 256, 1, 1), "roi_head.bbox_head.fc_cls": (81, 1024)}
    shapes |= {"roi_head.bbox_head.fc_reg": (320, 1024), "roi_head.bbox_head.shared_fcs.0": (1024, 12544)}
    shapes |= {"roi_head.bbox_head.shared_fcs.1": (1024, 1024)}
    for i in range(4):
        shapes[f"neck.lateral_convs.{i}.conv"] = (256, 256 * 2**i, 1, 1)
        shapes[f"neck.fpn_convs.{i}.conv"] = (256, 256, 3, 3)
    others = {f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    others |= {f"{name}.bias": torch.rand(shape[0]) for name, shape in shapes.items()}
    return renamed(weights, prefix="backbone.") | others
