"""A folder that is given as another data=: the error says which one it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from scenes import write_coco, write_instances, write_masks, write_voc
from zoo.scripts.config.schema import Data
from zoo.scripts.data import images
from zoo.scripts.data.layouts import guess
from zoo.scripts.data.loaders import create_evaluation
from zoo.scripts.data.scenes import splits

TRANSFORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}


def write_classes(root: Path) -> None:
    for split in ("train", "validation"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(root / split / name / "0.png")
    (root / "labels.json").write_text('["a", "b"]')  # of the user's own


WRITE: dict[str, Callable[[Path], object]] = {
    "voc": write_voc,
    "coco": write_coco,
    "instances": write_instances,
    "masks": write_masks,
    "folder": write_classes,
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    for name, write in WRITE.items():
        (base / name).mkdir()
        write(base / name)
    return base


@pytest.mark.parametrize("name", WRITE)
def test_each_layout_is_known(name: str, roots: Path, tmp_path: Path) -> None:
    assert guess(roots / name) == name
    assert guess(tmp_path) is None


@pytest.mark.parametrize(("given", "there"), [(a, b) for a in WRITE for b in WRITE if a != b])
def test_another_layout_is_offered(given: str, there: str, roots: Path) -> None:
    data = Data(name="" if given == "folder" else given, root=str(roots / there))
    with pytest.raises(FileNotFoundError) as error:
        create_evaluation(data, TRANSFORM, 2, 0)
    said = f"is not laid out as data={given} reads it, but as data={there} does; set data={there}"
    assert str(error.value) == f"data.root={roots / there} {said}"
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("name", ["voc", "instances", "masks"])
def test_the_folder_below_is_offered(name: str, roots: Path, tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "set").symlink_to(roots / name)
    with pytest.raises(FileNotFoundError, match=r"reads it; set data\.root=.*/above/set, which is"):
        splits.create_evaluation(Data(name=name, root=str(tmp_path / "above")), TRANSFORM, "boxes")


@pytest.mark.parametrize("name", WRITE)
def test_a_wrong_split_is_still_named(name: str, roots: Path) -> None:
    data = Data(name="" if name == "folder" else name, root=str(roots / name), eval_split="vall")
    with pytest.raises(FileNotFoundError, match=r"data\.eval_split"):
        create_evaluation(data, TRANSFORM, 2, 0)


def test_training_is_advised_too(roots: Path) -> None:
    with pytest.raises(FileNotFoundError, match="set data=instances"):
        splits.create_datasets(Data(name="voc", root=str(roots / "instances")), TRANSFORM, "boxes", 0)
    with pytest.raises(FileNotFoundError, match="set data=voc"):
        images.create_datasets(Data(name="", root=str(roots / "voc")), TRANSFORM)
