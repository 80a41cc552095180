"""Libraries that take a converted network as it is; docs/ecosystem.md names each with its test."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import NARROW, deformable, images, perturbed, randomise_offsets
from safetensors.torch import load_file
from torch import nn

from dcn_ops import DeformConv2d
from zoo import inject_


def converted(**kwargs):
    model = inject_(perturbed("resnet18", **NARROW, **kwargs))
    randomise_offsets(model)
    return model


def test_smp_decodes_a_converted_encoder() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-resnet18", encoder_weights=None, decoder_channels=(32, 16, 8, 8, 8)).eval()
    x = images()
    before = model(x)
    inject_(model)
    assert {name.split(".")[0] for name in deformable(model)} == {"encoder"}
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)
    preset = smp.Unet("tu-resnet18_dcn", encoder_weights=None)
    assert len(deformable(preset)) == len(deformable(model))


def test_torchvision_extracts_features_of_a_converted_network() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, x = converted(), images()
    extractor = extraction.create_feature_extractor(
        model, {"layer3": "c4"}, tracer_kwargs={"leaf_modules": [DeformConv2d]}
    )
    expected = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
    assert torch.equal(extractor(x)["c4"], expected)


def test_transformers_builds_a_preset_as_its_backbone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(
        backbone="resnet18_dcn", out_indices=(3, 4), use_pretrained_backbone=False
    )
    backbone = transformers.TimmBackbone(config).eval()
    assert deformable(backbone)
    maps = backbone(images()).feature_maps
    assert [list(m.shape) for m in maps] == [[2, 256, 4, 4], [2, 512, 2, 2]]


def test_a_transformers_network_keeps_its_outputs_and_loads_again(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", num_labels=3
    )
    x = images()
    model = transformers.ResNetForImageClassification(config).eval()
    before = model(x).logits
    inject_(model, input_size=(3, 64, 64))
    torch.testing.assert_close(model(x).logits, before, rtol=1e-4, atol=1e-5)
    randomise_offsets(model)
    model.save_pretrained(tmp_path)
    again = inject_(transformers.ResNetForImageClassification(config), input_size=(3, 64, 64)).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(again(x).logits, model(x).logits)


@pytest.mark.filterwarnings("ignore")  # it is written for an earlier torch
def test_lightning_trains_and_loads(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = converted()

        def training_step(self, batch):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Classifier()
    before = copy.deepcopy(module.state_dict())
    data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    predictors = [key for key in before if key.endswith("offset_weight")]
    assert predictors
    assert not any(torch.equal(before[key], module.state_dict()[key]) for key in predictors)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    x = images()
    assert torch.equal(loaded.model.eval()(x), module.model.eval()(x))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of opacus, for images
def test_opacus_gives_the_gradient_of_each_image() -> None:
    opacus = pytest.importorskip("opacus")
    model = nn.Sequential(DeformConv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    model[0].offset_weight.data.normal_(std=0.05)
    x, target = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2])
    expected = []
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), target[i : i + 1]).backward()
        expected.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    wrapped = opacus.GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    F.cross_entropy(wrapped(x), target, reduction="sum").backward()
    for parameter, *per_image in zip(wrapped.parameters(), *expected, strict=True):
        torch.testing.assert_close(parameter.grad_sample, torch.stack(per_image), rtol=1e-4, atol=1e-5)


def test_captums_attributions_sum_to_the_difference_of_the_outputs() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = converted().double(), torch.randn(1, 3, 32, 32).double()
    attributions = attr.IntegratedGradients(model).attribute(x, target=3, n_steps=100)
    difference = (model(x) - model(torch.zeros_like(x)))[0, 3]
    torch.testing.assert_close(attributions.sum(), difference, rtol=0.05, atol=1e-3)
    heat = attr.LayerGradCam(model, model.layer4[1].conv2).attribute(x, target=3)
    assert heat.shape == (1, 1, 1, 1)


def test_a_network_of_kornia_keeps_its_outputs() -> None:
    feature = pytest.importorskip("kornia.feature")
    model, x = feature.HardNet(pretrained=False).eval(), torch.randn(2, 1, 32, 32)
    before = model(x)
    inject_(model, input_size=(1, 32, 32))
    assert deformable(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_kornia_augments_before_a_converted_network_differentiably() -> None:
    augmentation = pytest.importorskip("kornia.augmentation")
    model = nn.Sequential(augmentation.RandomAffine(degrees=30.0, p=1.0), converted())
    x = images().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_ema_pytorch_averages_the_predictors() -> None:
    ema_pytorch = pytest.importorskip("ema_pytorch")
    model = converted()
    average = ema_pytorch.EMA(model, beta=0.5, update_every=1, update_after_step=0, inv_gamma=1e-9, power=1.0)
    before = model.layer4[1].conv2.offset_weight.detach().clone()
    average.update()
    with torch.no_grad():
        model.layer4[1].conv2.offset_weight.add_(1)
    average.update()
    averaged = average.ema_model.layer4[1].conv2.offset_weight
    assert ((averaged - before) > 0).all()
    assert ((averaged - before) < 1).all()


@pytest.mark.filterwarnings("ignore")  # of its imports
def test_torchao_quantises_linear_layers_and_leaves_deformable_ones() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, x = converted(), images()
    before = model(x)
    weights = {name: layer.weight for name, layer in deformable(model).items()}
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.fc.weight) is not nn.Parameter
    assert {name: layer.weight for name, layer in deformable(model).items()} == weights
    torch.testing.assert_close(model(x), before, rtol=0.05, atol=0.05)
