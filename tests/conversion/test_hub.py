"""Sharing, against a local stand-in for the hub that has the signatures of huggingface_hub; nothing is sent."""

import pytest
import timm
import yaml
from helpers import BUILT, NARROW, assert_same, images, perturbed, randomise_offsets
from hub_double import Hub

import zoo
from zoo import Card, DCNConfig, inject_

CARD = Card(data="Photos of cells.", metrics={"top1": 91.5}, command="dcn-train data=folder", license="mit")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return Hub(tmp_path / "hub", monkeypatch)


def converted(**kwargs):
    model = inject_(perturbed("resnet18", **NARROW), DCNConfig(**kwargs)).eval()
    randomise_offsets(model)
    return model


def test_a_pushed_network_loads(hub):
    model = converted(offset_groups=2)
    address = zoo.push(model, "me/net", CARD, model_args=BUILT, private=True, token="hf_1")
    assert address == "hub/me/net/commit/1"
    assert sorted(path.name for path in (hub.root / "me/net").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert_same(zoo.load("me/net"), model, images())
    assert_same(zoo.load("hf-hub:me/net@v1"), model, images())
    assert hub.calls == [
        ("create", "me/net", True, "hf_1"),
        ("upload", "me/net", None, "hf_1"),
        ("download", "me/net", None),
        ("download", "me/net", "v1"),
    ]


def test_the_card_says_layers_data_metrics_and_command(hub):
    model = converted(modulated=False, stages=(4,))
    zoo.push(model, "me/net", CARD, model_args=BUILT, token="hf_1")
    _, header, body = (hub.root / "me/net/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "dcn-zoo",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "dcn-zoo", "deformable-convolution"],
    }
    assert "`resnet18` of timm with 4 deformable layers" in body
    assert 'zoo.load("me/net")' in body
    assert body.count("| `layer4.") == 4
    assert "modulated=False" in body
    for said in ("Photos of cells.", "10 classes", "[3, 224, 224]", "| top1 | 91.5 |", "dcn-train data=folder"):
        assert said in body


def test_a_folder_comes_before_a_repository_of_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = converted()
    zoo.save(model, "me/net", BUILT)
    assert_same(zoo.load("me/net"), model, images())
    assert not hub.calls


@pytest.mark.parametrize("path", ["nowhere", "a/b/c", "./a/b", "/a/b", "../b"])
def test_paths_are_not_looked_up_on_the_hub(hub, path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        zoo.load(path)
    assert not hub.calls


def test_a_repository_that_the_hub_lacks_is_named_with_the_cure(hub):
    with pytest.raises(FileNotFoundError, match=r"no repository 'me/other'.*hf auth login"):
        zoo.load("me/other")


def test_nothing_is_pushed_without_a_token(hub, monkeypatch):
    monkeypatch.setattr("zoo.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"no token .*'me/net'.*hf auth login.*HF_TOKEN"):
        zoo.push(converted(), "me/net", model_args=BUILT)
    assert not hub.calls


@pytest.mark.parametrize("name", ["net", "me/a b", "a/b/c", None])
def test_a_name_that_the_hub_refuses_is_refused_at_once(hub, name):
    with pytest.raises(ValueError, match='expected a repository such as "user/name", got'):
        zoo.push(converted(), name, model_args=BUILT, token="hf_1")
    assert not hub.calls


def test_a_network_that_cannot_be_rebuilt_is_not_pushed(hub):
    with pytest.raises(ValueError, match="has no deformable layer"):
        zoo.push(timm.create_model("resnet18"), "me/net", token="hf_1")
    assert not hub.calls
