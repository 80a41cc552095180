"""A mistyped path of a checkpoint: the most similar file is suggested first, by every command."""

from pathlib import Path

import pytest
from zoo.scripts import migrate
from zoo.scripts.config.schema import Export, Migrate, Share
from zoo.scripts.deploy import source
from zoo.scripts.share import run as share
from zoo.scripts.storage import weights
from zoo.scripts.storage.existing import existing

FILES = [
    "runs/train/1/plain/last.safetensors",
    "runs/train/1/dcn/last.safetensors",
    "runs/train/1/dcn/best.safetensors",
    "runs/train/9/dcn/last.safetensors",
    "elsewhere/dcn/last.safetensors",
    "weights.pth",
]


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("runs/train/1/dcn/lst.safetensors", "runs/train/1/dcn/last.safetensors"),
        ("runs/train/1/dcn/bst.safetensors", "runs/train/1/dcn/best.safetensors"),
        ("runs/train/1/dcn/last.safetensor", "runs/train/1/dcn/last.safetensors"),
        ("runs/train/1/plainn/last.safetensors", "runs/train/1/plain/last.safetensors"),
        ("run/train/1/dcn/last.safetensors", "runs/train/1/dcn/last.safetensors"),
        ("runs/train/9/last.safetensors", "runs/train/9/dcn/last.safetensors"),
        ("elsewhere/dnc/last.safetensors", "elsewhere/dcn/last.safetensors"),
        ("elsewhere/dcn", "elsewhere/dcn/last.safetensors"),
    ],
)
def test_the_nearest_file_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        existing(typed)
    assert str(error.value).startswith(f"no checkpoint '{typed}'; did you mean {meant}? There are also: ")


def test_what_resembles_nothing_gets_a_list() -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'x'; there are: runs/train/1/"):
        existing("x")


def test_without_any_file_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="there are: none under runs/"):
        existing("x")


def test_what_is_there_is_returned() -> None:
    assert existing(FILES[1]) == Path(FILES[1])


def test_the_other_commands_suggest_too() -> None:
    typed, meant = "runs/train/1/dcn/lst.safetensors", r"did you mean runs/train/1/dcn/last\.safetensors\?"
    with pytest.raises(FileNotFoundError, match=f"got checkpoint={typed}; {meant}"):
        source.load(typed, None, Export().size)
    with pytest.raises(FileNotFoundError, match=meant):
        share(Share(checkpoint=typed, folder="out"))
    with pytest.raises(FileNotFoundError, match=r"got 'weihts\.pth'; did you mean weights\.pth\?"):
        migrate.run(Migrate(checkpoint="weihts.pth", folder="out"))
    with pytest.raises(FileNotFoundError, match=r"got model\.checkpoint_path=weightz\.pth; did you mean weights"):
        weights.read(Path("weightz.pth"))
