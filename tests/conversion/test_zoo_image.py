"""Networks that timm doesn't know: convolutions that read the image stay, and measuring changes nothing."""

import threading

import pytest
import torch
import torchvision
from helpers import deformable
from torch import nn
from torch.nn.functional import pad, pixel_unshuffle
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo import DCNConfig, inject_, plan
from zoo.meta import meta_copy

SIZES = [None, (3, 64, 64)]
each_size = pytest.mark.parametrize("size", SIZES)


def converted(model, size=None, config=None):
    return set(deformable(inject_(model, config or DCNConfig(), input_size=size)))


class Net(nn.Module):
    """``body(stem(prepare(x)))``. The body is defined first and has no strides: all layers have the same depth."""

    def __init__(self, prepare=lambda x: x, channels=3, wrap=lambda conv: conv):
        super().__init__()
        self.body = nn.Sequential(wrap(nn.Conv2d(16, 16, 3, padding=1)), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.stem = wrap(nn.Conv2d(channels, 16, 3, padding=1))
        self.prepare = prepare

    def forward(self, x):
        return self.body(self.stem(self.prepare(x)))


def copied_into(batch, x):
    batch[:, :, : x.shape[2], : x.shape[3]].copy_(x)
    return batch


PREPARE = {
    "nothing": (lambda x: x, 3),
    "normalised": (lambda x: (x - 0.5) / x.std((2, 3), keepdim=True), 3),
    "padded": (lambda x: pad(x, (1, 1, 1, 1)), 3),
    "pixels to channels": (lambda x: pixel_unshuffle(x, 2), 12),
    "slices to channels": (lambda x: torch.cat([x[..., ::2], x[..., 1::2]], 1), 6),
    "copied into a batch": (lambda x: copied_into(torch.zeros(2, 3, 299, 299, device=x.device), x), 3),
    "one of its channels": (lambda x: x.mean(1, keepdim=True), 1),
}


@each_size
@pytest.mark.parametrize("case", PREPARE)
def test_what_reads_the_image_stays_whatever_is_done_to_the_image_first(case, size):
    prepare, channels = PREPARE[case]
    model = Net(prepare, channels)
    # So that the image is known to have three channels even without a size.
    model.head = nn.Conv2d(16, 3, 1)
    model.mix = nn.Conv2d(3, 3, 1)
    assert converted(model, size) == {"body.0", "body.2"}


@pytest.mark.parametrize("case", PREPARE)
def test_what_reads_the_image_stays_where_no_convolution_takes_three_channels(case):
    assert converted(Net(*PREPARE[case])) == {"body.0", "body.2"}


def test_an_image_of_a_satellite_is_an_image_and_features_of_a_stage_are_none():
    assert converted(Net(channels=13)) == {"body.0", "body.2"}
    assert converted(Net(channels=16)) == {"body.0", "body.2", "stem"}


@each_size
@pytest.mark.parametrize("required", [True, False])
def test_the_stems_of_a_network_of_two_images_stay(required, size):
    class RGBD(nn.Module):
        def __init__(self):
            super().__init__()
            self.rgb, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(1, 16, 3, padding=1)
            self.body = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, rgb, depth=None):
            return self.body(self.rgb(rgb) + self.depth(depth))

    class Strict(RGBD):
        def forward(self, rgb, depth):
            return super().forward(rgb, depth)

    assert converted(Strict() if required else RGBD(), size) == {"body"}


def test_pooled_images_are_images_and_features_are_not():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
            self.joined = nn.Conv2d(8, 8, 3, padding=1)
            self.like = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            half = nn.functional.avg_pool2d(x, 2)
            fine = nn.functional.max_pool2d(self.fine(x), 2)
            # This depends only on the image's shape, not on the image.
            grid = torch.zeros_like(half) + x.new_ones(half.shape)
            return self.joined(fine + self.coarse(input=half)) + self.like(grid).sum(1, keepdim=True)

    assert converted(Pyramid()) == {"joined", "like"}


TORCHVISION = {
    "resnet18": (16, {"conv1"}),
    "squeezenet1_1": (8, {"features.0"}),
    "alexnet": (4, {"features.0"}),
    "densenet121": (58, {"features.conv0"}),
    "mobilenet_v3_small": (11, {"features.0.0"}),
    "googlenet": (19, {"conv1.conv"}),
}


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_keep_their_stem(name):
    count, stem = TORCHVISION[name]
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    layers = converted(model)
    assert len(layers) == count
    assert all(type(model.get_submodule(layer)) is nn.Conv2d for layer in stem)


def test_strides_are_known_with_an_input_size():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    layers = converted(model, (3, 224, 224), DCNConfig())
    assert layers == {f"layer{i}.{j}.conv{k}" for i in (2, 3, 4) for j in (0, 1) for k in (1, 2)}


class Unrunnable(Net):
    def forward(self, image, prompt):
        return super().forward(image) * prompt


@each_size
def test_a_network_that_cannot_run_keeps_what_takes_the_images_channels(size):
    model = Unrunnable()
    model.body.append(nn.Conv2d(3, 3, 3, groups=3))
    assert converted(model, size, DCNConfig()) == {"body.0", "body.2", "body.3"}


def test_another_number_of_channels_than_the_networks_is_no_way_to_its_stem(capsys):
    model = Net()
    assert plan(model, input_size=(1, 64, 64)).refused == {"stem": "reads the image"}
    assert "doesn't run on an image of 1x64x64" in capsys.readouterr().out
    assert converted(model, (1, 64, 64)) == {"body.0", "body.2"}


def test_stages_of_a_network_that_cannot_run_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"doesn't run on an image of \(3, 64, 64\): .*missing 1 required.*prompt"):
        inject_(Unrunnable(), DCNConfig(stages=(2,)), input_size=(3, 64, 64))


def test_a_part_of_a_network_reads_no_image():
    part = nn.Sequential(nn.Conv2d(64, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    assert converted(part) == {"0", "1"}
    image = nn.Sequential(nn.Conv2d(64, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    assert converted(image, (64, 32, 32)) == {"1"}


@each_size
def test_what_is_never_called_stays(size):
    model = Net()
    model.idle = nn.Conv2d(16, 16, 3)
    assert plan(model, input_size=size).refused == {
        "stem": "reads the image",
        "idle": "is not called in a forward pass; other code may read its weight",
    }
    assert converted(model, size) == {"body.0", "body.2"}


class Caching(Net):
    """Keeps tensors of its forward pass in an attribute, a list, a dict, and in place of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 16, 1, 1))
        self.kept, self.many, self.named = None, [], {}

    def forward(self, x):
        x = self.stem(x)
        if self.kept is None:
            self.kept = torch.ones_like(x)
            self.many.append(torch.ones_like(x))
            self.named["grid"] = torch.ones_like(x)
        self.mean = x.mean((0, 2, 3), keepdim=True)
        return self.body(x * self.kept * self.many[0] * self.named["grid"])


@each_size
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("verb", [plan, inject_])
def test_a_network_that_keeps_tensors_runs_after_it_was_measured(verb, warm, size):
    model, x = Caching(), torch.randn(2, 3, 64, 64)
    if warm:
        model(x)  # with gradients: the kept tensors are no leaves, which deepcopy refuses
    verb(model, input_size=size)
    assert model(x).device.type == "cpu"
    assert {t.device.type for t in (model.kept, *model.many, *model.named.values(), model.mean)} == {"cpu"}


@each_size
def test_no_hook_of_the_users_is_called(size):
    model, seen, lock = Net(), [], threading.Lock()

    def hook(*args):
        with lock:
            seen.append(args)

    for module in model.modules():
        module.register_forward_hook(hook)
        module.register_forward_pre_hook(hook)
    assert converted(model, size) == {"body.0", "body.2"}
    assert seen == []
    model(torch.randn(2, 3, 64, 64))
    assert len(seen) == 2 * 6


@each_size
def test_attributes_that_are_called_hooks_are_attributes(size):
    class Hooked(Net):
        def __init__(self):
            super().__init__()
            self.feature_hooks, self.scale_hooks = None, {"scale": 2}

        def forward(self, x):
            return super().forward(x) * self.scale_hooks["scale"]

    injection = plan(Hooked(), input_size=size)
    assert injection.refused == {"stem": "reads the image"}
    assert size is None or injection.flops_before > 0


@each_size
@pytest.mark.parametrize("way", ["weight_norm", "prune"])
def test_computed_weights_are_computed_in_the_copy(way, size):
    def wrap(conv):
        if way == "prune":
            return prune.random_unstructured(conv, "weight", amount=0.5)
        return parametrizations.weight_norm(conv)

    model = Net(wrap=wrap)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    injection = plan(model, DCNConfig(include=("body.2",)), input_size=size)
    assert [r.fqn for r in injection.replacements] == ["body.2"]
    assert size is None or injection.flops_before > 0
    assert injection.refused["stem"] == REASON[way]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


REASON = {"prune": "reads the image", "weight_norm": "ParametrizedConv2d has its own forward"}


@each_size
def test_a_network_that_cannot_be_copied_is_converted_without_measures(size, capsys):
    model = Net()
    model.lock = threading.Lock()
    injection = plan(model, input_size=size)
    assert (injection.flops_before, injection.input_size) == (None, size)
    assert "FLOPs are unknown" in capsys.readouterr().out
    assert converted(model, size, DCNConfig()) == {"body.0", "body.2"}
    assert type(model.stem) is nn.Conv2d


class Made(TorchDispatchMode):
    """Keeps the addresses of the data of tensors that operators return."""

    def __init__(self):
        super().__init__()
        self.pointers = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.pointers |= {t.data_ptr() for t in tree_leaves(out) if isinstance(t, torch.Tensor) and not t.is_meta}
        return out


def test_no_weight_is_copied():
    model = Net()
    model.kept = [torch.zeros(3), nn.Parameter(torch.zeros(3))]
    with Made() as made:
        twin = meta_copy(model)
    assert made.pointers <= {t.data_ptr() for t in (*model.parameters(), *model.kept)}
    assert {t.device.type for t in (*twin.parameters(), *twin.buffers(), *twin.kept)} == {"meta"}
    assert torch.equal(model.kept[1], torch.zeros(3))


def test_a_shared_convolution_stays_if_one_of_its_calls_reads_the_image():
    model = Net(channels=16)
    model.body.append(model.stem)
    model.first = nn.Conv2d(3, 16, 1)
    model.prepare = model.first
    # By its second name, which comes first in order of definition.
    assert converted(model) == {"body.0", "body.2", "body.3"}
    assert model.stem is model.body[3]
    model = Net()
    model.body.append(nn.Conv2d(16, 3, 1))
    model.body.append(model.stem)
    assert converted(model) == {"body.0", "body.2"}
