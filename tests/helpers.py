"""Networks for the tests, and what they are compared by."""

import timm
import torch
from torch import nn

import zoo
from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_
from zoo.convert import LAYER_ARGUMENTS

NARROW = {"channels": (8, 16, 32, 64), "num_classes": 10}
# timm records what a network was built with from 1.0.31 on.
BUILT = {"channels": NARROW["channels"]}


def perturbed(name, **kwargs):
    """Return a model in eval mode whose biases and norms do something: zero-initialised norms hide errors."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):  # NFNet's gains have four dimensions
                parameter.add_(0.2 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.2 * torch.randn_like(buffer))
            if key.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model


def without_data(name, **kwargs):
    """Return a model on the meta device; on the CPU where timm can't build it there, as RegNets before 1.0.30."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, **kwargs)
    except NotImplementedError:
        return timm.create_model(name, **kwargs)


def deformable(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d)}


def randomise_offsets(model):
    with torch.no_grad():
        for layer in deformable(model).values():
            layer.offset_weight.normal_(std=0.05)
            layer.offset_bias.normal_()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(self.first[0], nn.ReLU())

    def forward(self, x):
        return self.second(self.first(x))


def images(channels=3):
    return torch.randn(2, channels, 64, 64)


def arguments(model):
    return {
        name: {argument: getattr(layer, argument) for argument in LAYER_ARGUMENTS}
        for name, layer in deformable(model).items()
    }


def saved(folder, config=None, **kwargs):
    model = inject_(perturbed("resnet18", **NARROW, **kwargs), config or DCNConfig())
    randomise_offsets(model)
    zoo.save(model, folder, BUILT)
    return model


def assert_same(one, other, x):
    assert arguments(one) == arguments(other)
    assert list(one.state_dict()) == list(other.state_dict())
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))
