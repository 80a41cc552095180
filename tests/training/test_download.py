"""Without a network, timm's weights: the error says what was tried, and the cures work."""

from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
from zoo.scripts.config.schema import Data
from zoo.scripts.inspect.subject import of_timm
from zoo.scripts.networks.download import downloading
from zoo.scripts.storage import checkpoint

PLAIN = {"create_model": {"model_name": "resnet18", "num_classes": 5}, "dcn": None}
FCOS = {
    "create_model": {"model_name": "resnet18", "num_classes": 2},
    "head": {"name": "fcos", "channels": 32, "kwargs": {}},
    "dcn": None,
}
UNET = {
    "create_model": {"model_name": "resnet18", "num_classes": 2, "in_chans": 3},
    "head": {"name": "unet", "channels": 32, "kwargs": {}},
    "dcn": None,
}
TRIED = r"can't download timm's weights of resnet18 from huggingface\.co/timm/resnet18\.\w+: there is no connection"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client, offline, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("recipe", [PLAIN, FCOS, UNET], ids=["classifier", "detector", "segmenter"])
def test_the_error_names_the_source_and_the_cures(recipe: dict[str, object]) -> None:
    with pytest.raises(ConnectionError, match=TRIED) as error:
        checkpoint.build(recipe, pretrained=True)
    assert "set model.checkpoint_path=FILE" in str(error.value)
    assert "model.pretrained=false" in str(error.value)
    assert error.value.__cause__ is not None


def test_dcn_visualize_has_its_own_cures() -> None:
    with pytest.raises(ConnectionError, match=rf"{TRIED}.*; set pretrained=false .*, or checkpoint=FILE"):
        of_timm("resnet18", True, Data(name=""), 0)


def test_both_cures_work(tmp_path: Path) -> None:
    """Also with ``pretrained`` still true, as presets set it."""
    torch.save(timm.create_model("resnet18", num_classes=5).state_dict(), tmp_path / "plain.pth")
    model = checkpoint.build(PLAIN, pretrained=True, start=tmp_path / "plain.pth")
    expected = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert torch.equal(model.state_dict()["conv1.weight"], expected["conv1.weight"])
    assert checkpoint.build(PLAIN, pretrained=False) is not None


@pytest.mark.parametrize("error", [URLError("x"), TimeoutError(), ConnectionResetError()])
def test_a_lost_connection_is_one_whatever_reports_it(error: OSError) -> None:
    with pytest.raises(ConnectionError, match="set something") as raised, downloading("resnet18", "something"):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_stay() -> None:
    with pytest.raises(PermissionError, match="disk"), downloading("resnet18", "something"):
        raise PermissionError("disk")
