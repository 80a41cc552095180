"""A checkpoint of dcn-train becomes a folder for zoo.load, or a repository of the hub with the run's card."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_double import Hub
from zoo.scripts.config.command import compose_train
from zoo.scripts.storage import checkpoint, sharing
from zoo.scripts.training.run import run

import zoo

QUICK = [
    "data.max_batches=4", "data.batch_size=20", "data.eval_copies=1", "optim.epochs=2", "optim.warmup_epochs=0",
    "report=false", "trackers=[]", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(compose_train(*QUICK), folder)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("- optim.epochs=2\n- data.root=/home/me/secret/digits\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def assert_equal(model: torch.nn.Module, path: Path) -> None:
    expected, images = checkpoint.load(path), torch.randn(2, 1, 42, 42)
    assert torch.equal(model.eval()(images), expected(images))


def test_one_call_writes_a_folder_that_zoo_loads(trained: Path, tmp_path: Path) -> None:
    path = trained / "dcn" / "last.safetensors"
    sharing.to_folder(path, tmp_path)
    model = zoo.load(tmp_path)
    assert_equal(model, path)
    cfg = checkpoint.read_recipe(path)["pretrained_cfg"]
    assert model.pretrained_cfg["num_classes"] == 10
    assert model.pretrained_cfg["input_size"] == (1, 42, 42)
    assert list(model.pretrained_cfg["mean"]) == cfg["mean"]
    assert list(model.pretrained_cfg.get("label_names") or ()) == cfg.get("label_names", [])


def test_names_of_classes_are_kept(trained: Path, tmp_path: Path) -> None:
    path = trained / "dcn" / "last.safetensors"
    recipe = checkpoint.read_recipe(path)
    recipe["pretrained_cfg"]["label_names"] = [f"digit {i}" for i in range(10)]
    checkpoint.save(checkpoint.load(path), recipe, tmp_path / "named.safetensors")
    sharing.to_folder(tmp_path / "named.safetensors", tmp_path / "saved")
    assert zoo.load(tmp_path / "saved").pretrained_cfg["label_names"][3] == "digit 3"


def test_the_folder_has_the_card_that_the_hub_gets(
    trained: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    path, folder = trained / "dcn" / "last.safetensors", tmp_path / "shared"
    sharing.to_folder(path, folder, license="mit")
    sharing.push(path, "me/shared", license="mit")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in text
    assert "dcn-train optim.epochs=2 data.root=/path/to/digits" in text
    assert 'zoo.load("shared")' in text
    pushed = (hub.root / "me" / "shared" / "README.md").read_text(encoding="utf-8")
    assert text == pushed.replace("me/shared", "shared")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_what_is_in_the_folder_is_replaced_only_on_request(name: str, trained: Path, tmp_path: Path) -> None:
    path, folder = trained / "dcn" / "last.safetensors", tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    (folder / "notes.txt").write_text("mine too")
    with pytest.raises(FileExistsError, match=rf"has {name} already; .* overwrite=true"):
        sharing.to_folder(path, folder)
    assert (folder / name).read_text() == "mine"
    sharing.to_folder(path, folder, overwrite=True)
    assert_equal(zoo.load(folder), path)
    assert (folder / "notes.txt").read_text() == "mine too"


def test_a_file_is_no_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"folder=.*file, which is a file"):
        sharing.to_folder(trained / "dcn" / "last.safetensors", tmp_path / "file")


def test_the_card_has_the_run_and_no_path_of_the_machine(trained: Path) -> None:
    rows = (trained / "dcn" / "metrics.csv").read_text().splitlines()
    header, *rows = [row.split(",") for row in rows]
    top1 = [float(row[header.index("eval/top1")]) for row in rows]
    last = sharing.card(trained / "dcn" / "last.safetensors")
    assert last.metrics is not None
    assert last.metrics["top1"] == top1[-1]
    assert set(last.metrics) == {"loss", "top1"}
    best = sharing.card(trained / "dcn" / "best.safetensors", "mit")
    assert best.metrics is not None
    assert best.metrics["top1"] == max(top1)
    assert best.license == "mit"
    assert last.data == "mnist_rts"
    assert last.command == "dcn-train optim.epochs=2 data.root=/path/to/digits"


def test_a_checkpoint_away_from_its_run_has_an_empty_card(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "some" / "where" / "x.safetensors"
    moved.parent.mkdir(parents=True)
    moved.write_bytes((trained / "dcn" / "last.safetensors").read_bytes())
    assert sharing.card(moved) == zoo.Card()


def test_dcn_train_pushes_the_best_network(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    run(compose_train(*QUICK, "variants=[dcn]", "push_to=me/digits"), tmp_path)
    assert [call[:2] for call in hub.calls] == [("create", "me/digits"), ("upload", "me/digits")]
    assert_equal(zoo.load("me/digits"), tmp_path / "dcn" / "best.safetensors")


def test_without_push_to_nothing_is_pushed(trained: Path, hub: Hub, tmp_path: Path) -> None:
    run(compose_train(*QUICK, "variants=[dcn]", "optim.epochs=1"), tmp_path)
    sharing.to_folder(trained / "dcn" / "last.safetensors", tmp_path / "saved")
    assert not hub.calls


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["push_to=digits"], "expected a repository"),
        (["push_to=me/digits", "variants=[plain]"], r"got task=classification and variants=\['plain'\]"),
    ],
)
def test_a_push_that_cannot_succeed_is_refused_before_the_training(
    overrides: list[str], named: str, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    with pytest.raises(ValueError, match=named):
        run(compose_train(*QUICK, *overrides), tmp_path)
    assert not list(tmp_path.glob("*"))


def test_without_a_token_a_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"):
        run(compose_train(*QUICK, "push_to=me/digits"), tmp_path)


def test_a_refused_upload_names_the_command_that_repeats_it(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    (hub.root / "me").mkdir(parents=True)
    (hub.root / "me" / "digits").write_text("in the way")  # the double refuses to make the repository
    with pytest.raises(OSError) as error:  # noqa: PT011 (the system's own message)
        run(compose_train(*QUICK, "variants=[dcn]", "optim.epochs=1", "push_to=me/digits"), tmp_path / "run")
    assert "dcn-share checkpoint=" in error.value.__notes__[0]
    assert (tmp_path / "run" / "dcn" / "best.safetensors").is_file()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zoo.scripts.share", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_writes_a_folder(trained: Path, tmp_path: Path) -> None:
    path, folder = trained / "dcn" / "best.safetensors", tmp_path / "shared"
    done = command(f"checkpoint={path}", f"folder={folder}")
    assert done.returncode == 0, done.stderr
    assert f"zoo.load('{folder}')" in done.stdout
    assert_equal(zoo.load(folder), path)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert 'zoo.load("shared")' in card
    assert "mnist_rts" in card
    assert "license: mit" not in card


def test_what_cannot_be_shared_is_one_line(trained: Path, tmp_path: Path) -> None:
    plain = command(f"checkpoint={trained}/plain/last.safetensors", f"folder={tmp_path}")
    assert plain.returncode == 1
    assert "is a plain network" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "folder=FOLDER, or push_to=user/repo" in command("checkpoint=x").stderr
