"""Checkpoints and initial weights: what a header may contain, what is refused, what is written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from zoo.scripts.storage import checkpoint, files
from zoo.scripts.storage.files import atomically, locked

import zoo
from dcn_ops import DeformConv2d

SMALL = {"model_name": "resnet18", "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8}
DCN = {"include": ["layer4.*"]}


def recipe(dcn: dict[str, Any] | None = None, num_classes: int = 4, **kwargs: Any) -> dict[str, Any]:
    return {"create_model": {**SMALL, "num_classes": num_classes, **kwargs}, "dcn": dcn}


def with_header(folder: Path, header: Any) -> Path:
    path = folder / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"recipe": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"checkpoint_path": "FILE"}, "checkpoint_path='FILE'"),
        ({"pretrained": True}, "pretrained=True"),
        ({"pretrained_cfg": {"file": "FILE"}}, "pretrained_cfg={'file': 'FILE'}"),
        ({"pretrained_cfg_overlay": {"file": "FILE"}}, "pretrained_cfg_overlay={'file': 'FILE'}"),
        ({"pretrained_model_args": {}}, "pretrained_model_args={}"),
        ({"cache_dir": "FILE"}, "cache_dir='FILE'"),
        ({"model_name": "resnet18_dcn", "base": "resnet18"}, "base='resnet18'"),
        ({"model_name": "local-dir:FILE"}, "model_name='local-dir:FILE'"),
        ({"model_name": "hf-hub:someone/resnet18"}, "model_name='hf-hub:someone/resnet18'"),
        ({"model_name": "resnet500"}, "model_name='resnet500'"),
        ({"model_name": ["resnet18"]}, "model_name=['resnet18']"),
    ],
)
def test_a_header_chooses_nothing_to_load(arguments: dict[str, Any], named: str, tmp_path: Path) -> None:
    """The named file exists and is harmless: it is refused because of its name, not because it is missing."""
    other = tmp_path / "other.safetensors"
    save_file(timm.create_model(**SMALL, num_classes=4).state_dict(), other)
    filled = json.loads(json.dumps({**SMALL, "num_classes": 4, **arguments}).replace("FILE", str(other)))
    path = with_header(tmp_path, {"create_model": filled, "dcn": None})
    with pytest.raises(ValueError, match="has a recipe that is refused") as error:
        checkpoint.load(path)
    assert named.replace("FILE", str(other)) in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "header",
    [
        recipe() | {"pretrained_cfg": {"file": "x"}},
        recipe() | {"pretrained_cfg": {"hf_hub_id": "someone/else"}},
        recipe() | {"weights": "x"},
        recipe({"where": "x"}),
        recipe({"stage": [1]}),
        {"create_model": SMALL},
        {"create_model": "resnet18", "dcn": None},
        [],
        "resnet18",
    ],
)
def test_a_header_holds_known_keys_alone(header: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.safetensors has a recipe that is refused: expected"):
        checkpoint.load(with_header(tmp_path, header))


def test_arguments_that_the_network_does_not_take_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timm can't build this network, .*'layrs': 3.*layrs"):
        checkpoint.load(with_header(tmp_path, recipe(layrs=3)))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(checkpoint.build(recipe(num_classes=5)), recipe(), path)
    with pytest.raises(
        ValueError, match=r"x\.safetensors: the weights are not those of its recipe: (?s:.*)size mismatch"
    ):
        checkpoint.load(path)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_damaged_checkpoint_is_named(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(checkpoint.build(recipe()), recipe(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged or no safetensors file"):
        checkpoint.load(path)


def test_a_training_state_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"step": 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is a file of torch\.save; take last\.safetensors of a run"):
        checkpoint.load(tmp_path / "state.pt")


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("num_classes", [4, 7])
def test_a_run_starts_from_plain_weights_and_drops_a_classifier_of_other_classes(
    num_classes: int, suffix: str, tmp_path: Path
) -> None:
    source, path = checkpoint.build(recipe(num_classes=num_classes)), tmp_path / f"x{suffix}"
    save_weights(path, source.state_dict())
    for dcn in (None, DCN):
        torch.manual_seed(1)
        fresh = checkpoint.build(recipe(dcn))
        torch.manual_seed(1)
        model = checkpoint.build(recipe(dcn), start=path)
        state = source.state_dict()
        for key, value in model.state_dict().items():
            expected = fresh.state_dict()[key] if key.startswith("fc.") and num_classes != 4 else state.get(key)
            assert expected is not None or "offset_" in key
            assert expected is None or torch.equal(value, expected), key


@pytest.mark.parametrize("num_classes", [4, 7])
def test_a_run_starts_from_converted_weights_of_other_classes(num_classes: int, tmp_path: Path) -> None:
    source, path = checkpoint.build(recipe(DCN, num_classes)), tmp_path / "last.safetensors"
    for layer in source.modules():
        if isinstance(layer, DeformConv2d):
            torch.nn.init.normal_(layer.offset_weight)
    checkpoint.save(source, recipe(DCN, num_classes), path)
    model = checkpoint.build(recipe(DCN), start=path).state_dict()
    kept = {key for key in model if num_classes == 4 or not key.startswith("fc.")}
    assert kept >= {"layer4.0.conv1.offset_weight", "conv1.weight"}
    assert all(torch.equal(source.state_dict()[key], model[key]) for key in kept)
    with pytest.raises(ValueError, match=r"has the unexpected layer4\.0\.conv1\.offset_bias, .*variants=\[dcn\]"):
        checkpoint.build(recipe(), start=path)
    with pytest.raises(ValueError, match=r"has the unexpected layer4\.0\.conv1\.offset_bias, "):
        checkpoint.build(recipe({"include": ["layer4.0.conv2"]}), start=path)


def test_weights_of_another_shape_are_one_line(tmp_path: Path) -> None:
    wide = recipe(channels=[9, 9, 9, 9])
    path = tmp_path / "x.safetensors"
    checkpoint.save(checkpoint.build(wide), wide, path)
    with pytest.raises(ValueError, match=r"x\.safetensors is of another network: .* instead of .* more") as error:
        checkpoint.build(recipe(), start=path)
    assert "\n" not in str(error.value)
    assert "set model.name, model.kwargs and dcn as in its training" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "error", "answer"),
    [
        ("nowhere.pth", None, FileNotFoundError, r"got model\.checkpoint_path=.*nowhere\.pth"),
        ("x.pth", b"no archive", ValueError, r"model\.checkpoint_path=.*x\.pth holds more than weights"),
        ("x.safetensors", b"no file", ValueError, r"model\.checkpoint_path=.*x\.safetensors is damaged"),
        ("x.pth", {"epoch": 3}, ValueError, r"expected a state_dict in model\.checkpoint_path=.*got \['epoch'\]"),
        ("x.pth", {"a.weight": torch.zeros(2)}, ValueError, r"x\.pth is of another network"),
    ],
)
def test_a_start_that_fails_names_its_file(
    name: str, content: Any, error: type[Exception], answer: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(error, match=answer):
        checkpoint.build(recipe(), start=path)


def test_a_file_has_the_permissions_that_others_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save(torch.nn.Linear(2, 2), recipe(), tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_system_that_syncs_nothing_costs_no_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    atomically(tmp_path / "x", lambda path: path.write_text("new") and None)
    assert (tmp_path / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_not_opened_or_synced_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open

    def refuse(path: Any, flags: int, *rest: Any, **kwargs: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, flags, *rest, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    atomically(tmp_path / "x", lambda path: path.write_text("new") and None)
    assert (tmp_path / "x").read_text() == "new"


def test_a_disk_that_fails_to_sync_ends_the_run_with_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("old")

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error") as error:
        atomically(tmp_path / "x", lambda path: path.write_text("new") and None)
    assert "the previous file is intact" in str(error.value.__notes__)
    assert (tmp_path / "x").read_text() == "old"


def test_two_that_write_one_file_leave_one_whole(tmp_path: Path) -> None:
    """The first writes while the second begins and ends."""

    def first(path: Path) -> None:
        path.write_text("first")
        atomically(tmp_path / "x", lambda other: other.write_text("second") and None)

    atomically(tmp_path / "x", first)
    assert (tmp_path / "x").read_text() == "first"


def test_a_folder_in_use_names_the_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0)
    (tmp_path / "dcn").mkdir()
    left = tmp_path / "dcn" / "state.pt.01234567.tmp"
    left.write_bytes(b"of a run that was killed")
    with locked(tmp_path):
        assert not left.exists()
        answer = rf"is in use by process {os.getpid()} on .* since \d{{4}}"
        with pytest.raises(ValueError, match=answer), locked(tmp_path):
            raise AssertionError
    with locked(tmp_path):
        pass


KILLED = """
import os, sys, time
from pathlib import Path
from zoo.scripts.storage.files import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        time.sleep(2)  # a worker of a data loader, which goes on for a while
        os._exit(0)
    os.kill(os.getpid(), 9)
"""


def test_a_run_that_was_killed_is_waited_for(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert done.returncode == -9
    assert (tmp_path / ".lock.json").exists()
    with locked(tmp_path):
        pass


def test_a_saved_network_of_the_zoo_starts_a_run(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model = zoo.inject_(timm.create_model(**SMALL, num_classes=4), zoo.DCNConfig(**DCN))
    save_file(model.state_dict(), path)
    built = checkpoint.build(recipe(DCN), start=path)
    assert all(torch.equal(value, load_file(path)[key]) for key, value in built.state_dict().items())
