"""The examples of docs/migrate.md that need no other library's code run as they stand there."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from sources import MMCV_V2, of_detectron2, of_mmdetection, resnet

PAGE = (Path(__file__).parents[2] / "docs" / "migrate.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
MMDETECTION, DETECTRON2 = "faster_rcnn_r50_fpn_mdconv_c3-c5_1x_coco.pth", "model_final_c5e9c9.pkl"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": of_mmdetection(resnet(MMCV_V2).float().state_dict())}, MMDETECTION)
    arrays = {key: value.numpy() for key, value in of_detectron2(resnet(MMCV_V2, caffe=True).state_dict()).items()}
    Path(DETECTRON2).write_bytes(pickle.dumps({"model": arrays, "__author__": "detectron2"}))


@pytest.mark.parametrize(
    "section",
    ["mmdetection and mmsegmentation", "detectron2", "torchvision", "Code that imports mmcv or detectron2"],
)
def test_an_example_runs(section, files, capsys):
    values = {}
    exec(SECTIONS[section], values)
    if "result" in values:
        assert len(values["result"].layers) == 13
        assert Path("migrated", "model.safetensors").is_file()
    assert len([line for line in SECTIONS[section].splitlines() if line]) <= 12


def test_every_section_has_an_example():
    sections = re.findall(r"^## (.*)", PAGE, re.MULTILINE)
    assert [*SECTIONS, "What can't be migrated, and why"] == sections
