"""dcn-train: configs, data, checkpoints, the command itself."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file, save_file
from zoo.scripts.config.command import check_overrides, register
from zoo.scripts.config.command import compose_train as composed
from zoo.scripts.config.schema import Data, Train
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.storage import checkpoint
from zoo.scripts.training.run import run

from zoo import conf

QUICK = ["data.max_batches=2", "data.eval_copies=1", "optim.epochs=2", "optim.warmup_epochs=0"]
# Values that a config leaves to its user.
NAMED = {"timm": ["model.name=resnet34"]}
# conf/deploy is no group: the folder of dcn-export's own config.
GROUPS = sorted(p for p in Path(conf.__file__).parent.glob("*/*.yaml") if p.parent.name != "deploy")


@pytest.mark.parametrize("path", GROUPS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_config_composes(path: Path) -> None:
    config = composed(f"{path.parent.name}={path.stem}", "data.root=/data", *NAMED.get(path.stem, []))
    assert isinstance(config, Train)
    assert config.optim.lr > 0
    assert config.model.name


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("optim.lrr=1", "did you mean optim.lr?"),
        ("dcn.stage=[4]", "did you mean dcn.stages?"),
        ("epochs=3", "The keys here: task, head, model, dcn, data, optim, variants, seed"),
        ("+data.size=3", "The keys here: data.name, data.root"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_right_ones(
    override: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dcn-train", override])
    with pytest.raises(SystemExit) as error:
        check_overrides(Train)
    assert answer in str(error.value)


@pytest.mark.parametrize("command", ["train", "visualize", "evaluate"])
def test_runs_that_start_within_a_second_have_folders_of_their_own(command: str) -> None:
    register()
    folders = set()
    for _ in range(2):
        with initialize_config_module("zoo.conf", version_base="1.3"):
            folders.add(compose(command, return_hydra_config=True).hydra.run.dir)
    assert len(folders) == 2


def test_right_keys_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [
        "optim.lr=1",
        "model=resnet50",
        "+model.kwargs.drop_rate=0.1",
        "experiment=demo",
        "hydra.run.dir=y",
        "-m",
    ]
    monkeypatch.setattr(sys, "argv", ["dcn-train", *overrides])
    check_overrides(Train)


def test_digits_are_new_every_epoch_for_training_and_the_same_for_evaluation() -> None:
    splits = create_splits(Data(name="mnist_rts", img_size=42, batch_size=100, eval_copies=2), {}, seed=0)
    assert (len(splits.train), len(splits.evaluate), splits.num_classes) == (40, 20, 10)
    images, labels = next(iter(splits.evaluate))
    assert images.shape == (100, 1, 42, 42)
    assert torch.equal(images, next(iter(splits.evaluate))[0])
    epochs = []
    for epoch in (0, 1, 0):
        splits.train.batch_sampler.set_epoch(epoch)
        epochs.append(next(iter(splits.train))[0])
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert sum(len(y) for _, y in splits.evaluate) == 2000
    assert labels.dtype == torch.int64


def test_digits_stay_on_the_canvas() -> None:
    data = Data(name="mnist_rts", img_size=42, batch_size=100, rotation=0, scale=(1.0, 1.0))
    images, _ = next(iter(create_splits(data, {}, seed=0).evaluate))
    # Undistorted digits have a margin of four pixels: a distortion that stays on the canvas keeps all ink.
    ink = (images - images.amin()).sum((1, 2, 3))
    assert (images[:, :, :3].amax() - images.amin()) < 0.9 * (images.amax() - images.amin())
    assert ink.min() > 0


@pytest.mark.slow
def test_the_default_run_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(composed(*QUICK), tmp_path)
    assert [row.variant for row in rows] == ["plain", "dcn"]
    plain, dcn = rows
    assert dcn.parameters > plain.parameters
    assert dcn.flops > plain.flops
    assert all(ms and ms > 0 for row in rows for ms in (row.eager_ms, row.compiled_ms))
    assert "top-1" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())[1]["variant"] == "dcn"
    assert (tmp_path / "sampling.png").stat().st_size > 10_000
    metrics = list(csv.DictReader((tmp_path / "dcn" / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in metrics] == ["0", "1"]
    assert list(tmp_path.glob("dcn/events.out.tfevents.*"))


def test_both_variants_start_from_the_same_weights_and_data(tmp_path: Path) -> None:
    run(composed(*QUICK, "optim.lr=0", "report=false"), tmp_path)
    plain = load_file(tmp_path / "plain" / "last.safetensors")
    dcn = load_file(tmp_path / "dcn" / "last.safetensors")
    for key, value in plain.items():
        torch.testing.assert_close(dcn[key], value)


def test_the_predictors_learn_and_learn_more_slowly(tmp_path: Path) -> None:
    run(composed(*QUICK, "variants=[dcn]", "optim.opt=sgd", "optim.lr=1e-3", "report=false"), tmp_path / "slow")
    run(
        composed(
            *QUICK, "variants=[dcn]", "optim.opt=sgd", "optim.lr=1e-3", "optim.offset_lr_scale=1", "report=false"
        ),
        tmp_path / "fast",
    )
    slow, fast = (load_file(tmp_path / name / "dcn" / "last.safetensors") for name in ("slow", "fast"))
    key = "layer2.0.conv1.offset_weight"
    assert 0 < slow[key].norm() < 0.5 * fast[key].norm()


def test_a_checkpoint_rebuilds_the_trained_network(tmp_path: Path) -> None:
    run(composed(*QUICK, "variants=[dcn]", "dcn.offset_groups=2", "report=false"), tmp_path)
    path = tmp_path / "dcn" / "last.safetensors"
    model = checkpoint.load(path)
    assert model.layer4[0].conv2.offset_groups == 2
    state = load_file(path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "last.safetensors"
    checkpoint.save(model, {"dcn": None}, path)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(model, {"dcn": None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no recipe"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"lower optim\.lr=1e\+38"):
        run(composed(*QUICK, "variants=[plain]", "optim.lr=1e38", "optim.opt=sgd", "report=false"), tmp_path)


def test_an_unknown_model_is_answered_with_close_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"close names: .*resnet50"):
        run(composed("model=resnet50", "model.name=resnet500"), tmp_path)


def test_an_unknown_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got \\['dnc'\\]"):
        run(composed("variants=[dnc]"), tmp_path)


@pytest.mark.slow
def test_compiled_training_equals_eager(tmp_path: Path) -> None:
    tiny = ["data.batch_size=8", "variants=[dcn]", "report=false", "optim.opt=sgd", "optim.lr=0.01"]
    # The more layers, the longer it compiles.
    tiny += ["dcn.include=[layer3.0.conv2]", "optim.offset_lr_scale=10"]
    run(composed(*QUICK, *tiny), tmp_path / "eager")
    run(composed(*QUICK, *tiny, "compile=true"), tmp_path / "compiled")
    eager, compiled = (load_file(tmp_path / name / "dcn" / "last.safetensors") for name in ("eager", "compiled"))
    for key, value in eager.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zoo.scripts.train", *QUICK, "variants=[dcn]", "report=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/train/*/dcn/last.safetensors"))
