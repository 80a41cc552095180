"""dcn-migrate: from a file to a folder, and one line for a mistake."""

import sys

import pytest
import timm
import torch
import zoo.scripts.migrate as command
from safetensors.torch import load_file
from sources import MMCV_V2, of_mmdetection, resnet
from zoo.scripts.config.schema import Migrate

import zoo


def test_a_checkpoint_becomes_a_folder(tmp_path, capsys):
    checkpoint = of_mmdetection(resnet(MMCV_V2, replace_stride_with_dilation=(False, False, True)).state_dict())
    torch.save({"state_dict": checkpoint}, tmp_path / "model.pth")
    folder, arguments = tmp_path / "folder", {"output_stride": 16}
    command.run(Migrate(checkpoint=str(tmp_path / "model.pth"), folder=str(folder), arguments=arguments))
    printed = capsys.readouterr().out
    assert "source: mmdetection" in printed
    assert "deformable: 13 layers" in printed
    expected, _ = zoo.migrate.build(tmp_path / "model.pth", **arguments)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(zoo.load(folder).eval()(x), expected.eval()(x))
    rest = load_file(folder / "rest.safetensors")
    assert torch.equal(rest["neck.fpn_convs.3.conv.bias"], checkpoint["neck.fpn_convs.3.conv.bias"])


def test_a_plain_checkpoint_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"no layer of the backbone in .*model.pth predicts offsets"):
        command.run(Migrate(checkpoint=str(tmp_path / "model.pth"), folder=str(tmp_path / "folder")))
    assert not (tmp_path / "folder").exists()


def test_a_model_in_the_folder_is_replaced_only_on_request(tmp_path):
    torch.save({"state_dict": of_mmdetection(resnet(MMCV_V2).state_dict())}, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text("mine")
    config = Migrate(checkpoint=str(tmp_path / "model.pth"), folder=str(tmp_path))
    with pytest.raises(FileExistsError, match=r"has config\.json already; .* overwrite=true"):
        command.run(config)
    assert (tmp_path / "config.json").read_text() == "mine"
    config.overwrite = True
    command.run(config)
    assert zoo.load(tmp_path) is not None


MISTAKES = {
    (): "error: expected a file and a folder: dcn-migrate checkpoint=FILE folder=FOLDER",
    ("checkpoint=none.pth", "folder=out"): "error: expected a checkpoint file, got 'none.pth'",
    ("folders=out",): "did you mean folder?",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_answered_in_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dcn-migrate", *arguments])
    with pytest.raises(SystemExit) as exit:
        command.main()
    assert MISTAKES[arguments] in exit.value.code
    assert not list(tmp_path.iterdir())
