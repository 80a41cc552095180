"""peft's LoRA on deformable convolutions: merged and unmerged networks are the same."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import deformable, images, perturbed, randomise_offsets
from torch import nn

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_

peft = pytest.importorskip("peft")
register_lora = importlib.import_module("zoo.integrations.lora").register_lora

LAYERS = r"layer4\.\d\.conv\d"


def converted(name="resnet18", config=None):
    model = inject_(perturbed(name, num_classes=10), config or DCNConfig())
    randomise_offsets(model)
    return model


def adapted(model, **kwargs):
    return peft.get_peft_model(model, register_lora(peft.LoraConfig(target_modules=LAYERS, r=4, **kwargs))).eval()


def randomise_adapters(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=2)


def test_a_new_adapter_keeps_the_outputs() -> None:
    model, x = converted(), images()
    before = model(x)
    assert torch.equal(adapted(model)(x), before)


@pytest.mark.parametrize("kwargs", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}], ids=str)
@torch.no_grad()
def test_merged_and_unmerged_outputs_agree(kwargs: dict) -> None:
    model, x = converted(), images()
    before = model(x)
    model = adapted(model, **kwargs)
    randomise_adapters(model)
    unmerged = model(x)
    assert (unmerged - before).abs().max() > 0.01
    model.merge_adapter()
    torch.testing.assert_close(model(x), unmerged, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), unmerged, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_merged_network_is_the_converted_one_with_another_weight() -> None:
    model, x = converted(), images()
    keys = list(model.state_dict())
    wrapped = adapted(model)
    randomise_adapters(wrapped)
    unmerged = wrapped(x)
    merged = wrapped.merge_and_unload()
    assert list(merged.state_dict()) == keys
    assert type(merged.layer4[1].conv1) is DeformConv2d
    torch.testing.assert_close(merged(x), unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [{"dilation": 2, "padding": 2}, {"stride": 2}, {"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}],
    ids=str,
)
@pytest.mark.parametrize("offset_groups", [1, 2])
@torch.no_grad()
def test_an_adapter_pads_and_dilates_as_its_layer(arguments: dict, offset_groups: int) -> None:
    layer = DeformConv2d(4, 6, 3, offset_groups=offset_groups, **arguments)
    layer.offset_bias.normal_()
    model = peft.get_peft_model(
        nn.Sequential(layer), register_lora(peft.LoraConfig(target_modules=["0"], r=2))
    ).eval()
    randomise_adapters(model)
    x = torch.randn(2, 4, 9, 11)
    unmerged = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), unmerged, rtol=1e-5, atol=1e-5)


def test_an_adapter_trains_alone_and_lowers_the_loss() -> None:
    model, x, target = converted(), images(), torch.tensor([3, 7])
    model = adapted(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    assert not any("offset" in name for name in trained)
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@torch.no_grad()
def test_a_saved_adapter_loads(tmp_path: Path) -> None:
    model, x = adapted(converted()), images()
    randomise_adapters(model)
    model.save_pretrained(tmp_path)
    config = register_lora(peft.LoraConfig.from_pretrained(tmp_path))
    loaded = peft.PeftModel.from_pretrained(converted(), tmp_path, config=config).eval()
    assert torch.equal(loaded(x), model(x))


def test_bfloat16_layers_take_float32_adapters() -> None:
    model = adapted(converted().bfloat16())
    x = images().bfloat16()
    loss = model(x).float().square().mean()
    loss.backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_B" in name]
    assert gradients[0].dtype == torch.float32
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_what_cannot_be_merged_is_refused() -> None:
    depthwise = nn.Sequential(DeformConv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match=r"groups=1, got DeformConv2d.*exclude_modules"):
        peft.get_peft_model(depthwise, register_lora(peft.LoraConfig(target_modules=["0"], r=4)))
    standardised = converted("resnetv2_50x1_bit")
    assert deformable(standardised)
    config = register_lora(peft.LoraConfig(target_modules=r".*stages\.3.*conv2", r=4))
    with pytest.raises(ValueError, match="DeformStdConv2d, which standardises its weight"):
        peft.get_peft_model(standardised, config)
    with pytest.raises(ValueError, match="use_dora"):
        adapted(converted(), use_dora=True)
    with pytest.raises(TypeError, match="got LoHaConfig"):
        register_lora(peft.LoHaConfig())
