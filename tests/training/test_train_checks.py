"""dcn-train: what can't be trained is refused before the first step of the first variant, and in a dry run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from zoo.scripts.config.command import compose_train
from zoo.scripts.training import engine
from zoo.scripts.training.processes import create_accelerator
from zoo.scripts.training.run import run

QUICK = [
    "data.max_batches=2", "data.batch_size=20", "data.eval_copies=1", "optim.epochs=2", "optim.warmup_epochs=0",
    "report=false", "device=cpu",
]  # fmt: skip


@pytest.fixture(params=[False, True], ids=["run", "dry run"])
def refused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run with overrides that must neither train nor write anything; return the error."""

    def fit(*_: object, **__: object) -> None:
        raise AssertionError("it trains")

    def refusal(*overrides: str) -> str:
        monkeypatch.setattr(engine, "fit", fit)
        dry = f"dry_run={str(request.param).lower()}"
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            run(compose_train(*QUICK, dry, *overrides), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return refusal


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["dcn.stages=[9]"], "9"),
        (["dcn.include=[nothing]"], "nothing"),
        (["dcn.offset_groups=7"], "offset_groups"),
        (["model=timm", "model.name=resnet18_dcn"], "is already deformable; use model.name=resnet18,"),
        (["data.in_chans=3"], "the images have 1 channels, got data.in_chans=3"),
        (["data.in_chans=4"], "the images have 1 channels, got data.in_chans=4"),
        (["data.root=/photos"], "data.root=/photos is not read by data.name=mnist_rts; add data=folder"),
        (["data.num_classes=5"], "mnist_rts has 10 classes, got data.num_classes=5"),
        (["+model.kwargs.num_classes=3"], "drop model.kwargs.num_classes"),
        (["+model.kwargs.in_chans=3"], "set data.in_chans, and drop model.kwargs.in_chans"),
        (
            ["+model.kwargs.checkpoint_path=x"],
            "a recipe builds a network and loads nothing, got checkpoint_path='x'",
        ),
        (["+model.kwargs.pretrained=true"], "got pretrained=True"),
        (["+model.kwargs.layrs=3"], "timm can't build this network"),
        (["+model.kwargs.features_only=true"], "expected of 'plain' a score for each of the 10 classes"),
        (["model=timm", "model.name=test_vit"], "'plain' can't take images of [1, 42, 42]"),
        (["model.checkpoint_path=nowhere.pth"], "got model.checkpoint_path=nowhere.pth"),
        (["data.batch_size=1"], "BatchNorms of 'plain' would take the statistics of 1 image"),
        (["optim.accumulate=20"], "lower optim.accumulate=20"),
        (["optim.offset_warmup_steps=5"], "leaves no step for the offsets to learn in this run of 4"),
        (["optim.offset_warmup_steps=4"], "leaves no step for the offsets to learn in this run of 4"),
        (["optim.freeze=[nothing]"], "matches no module"),
        (["optim.epochs=0"], "optim.epochs=0"),
        (["optim.sched=none"], "depends only on the step"),
        (["optim.opt=admw"], "admw"),
        (["variants=[]"], "each once, got variants=[]"),
        (["variants=[dcn,dcn]"], "each once"),
        (["precision=fp8"], "precision=fp8"),
        (["device=nonsense"], "there is no device=nonsense"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(overrides: list[str], answer: str, refused: Any) -> None:
    assert answer in refused(*overrides)


def test_frozen_batch_norms_take_single_images(tmp_path: Path) -> None:
    frozen = "optim.freeze=['*bn*','*downsample.1*']"
    run(compose_train(*QUICK, "data.batch_size=1", "variants=[plain]", frozen, "optim.epochs=1"), tmp_path)
    assert (tmp_path / "plain" / "last.safetensors").exists()


def test_a_dry_run_prints_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(compose_train(*QUICK, "dry_run=true", "dcn.include=[layer4.*]"), tmp_path)
    out = capsys.readouterr().out
    assert "layer4.0.conv2" in out
    assert "whole network (2 replaced)" in out
    assert [path.name for path in tmp_path.iterdir()] == ["augmented.png"]


def test_the_log_starts_with_the_config_of_a_run_that_passes_its_checks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match="'resnet500'"):
        run(compose_train(*QUICK, "dry_run=true", "model.name=resnet500"), tmp_path)
    assert "the composed config" not in caplog.text, "an error stands alone"
    run(compose_train(*QUICK, "dry_run=true", "optim.lr=0.0123"), tmp_path)
    assert '"lr": 0.0123' in caplog.text
    assert "the data: 4,000 images to train (2 steps of 20 an epoch), 40 images to evaluate" in caplog.text
    # Without a limit of batches, the images that don't fill one are counted.
    run(compose_train(*QUICK, "dry_run=true", "data.max_batches=null", "data.batch_size=1500"), tmp_path)
    assert "4,000 images to train (2 steps of 1500 an epoch, without 1000 others each time)" in caplog.text
    with pytest.raises(ValueError, match=r"expected a learning rate of 0 or more, got optim\.lr=-1\.0"):
        run(compose_train(*QUICK, "dry_run=true", "optim.lr=-1"), tmp_path)
    assert "to evaluate; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in caplog.text


def test_a_dry_run_counts_the_images_of_this_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = ["model=timm", "model.name=test_resnet", "model.pretrained=false", "data.img_size=56"]
    run(compose_train(*QUICK, *network, "dry_run=true"), tmp_path)
    assert "for one image of 1x56x56" in capsys.readouterr().out


def test_layers_whose_offsets_stayed_at_zero_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = ["variants=[dcn]", "dcn.include=[layer4.*]", "data.max_batches=4", "optim.epochs=1"]
    with caplog.at_level(logging.WARNING):
        run(compose_train(*QUICK, *few), tmp_path / "a")
    assert "offsets are still zero" not in caplog.text
    with caplog.at_level(logging.WARNING):
        run(compose_train(*QUICK, *few, "optim.offset_lr_scale=0"), tmp_path / "b")
    assert "dcn: the offsets are still zero in layer4.0.conv1, layer4.0.conv2; lower" in caplog.text


def test_the_default_run_logs_no_line_for_each_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(compose_train(*QUICK, "data.max_batches=1", "optim.epochs=1"), tmp_path)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert not [line for line in lines if "FLOPs" in line or "DeformConv2d(" in line]
    assert [line for line in lines if "6 layers" in line and "deformable" in line]
    # But for paths, and the config.
    assert max(len(line) for line in lines if "/" not in line and not line.startswith("the composed config")) < 160


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the last step is finite, but the weights after the step are not."""

    def poison(training: Any, *args: Any) -> Any:
        found = original(training, *args)
        with torch.no_grad():
            next(p for p in training.model.parameters()).view(-1)[0] = torch.nan
        return found

    original = engine._Training._step
    config = compose_train(*QUICK, "variants=[plain]", "checkpoint_every=1", "optim.epochs=1")
    monkeypatch.setattr(engine._Training, "_step", poison)
    with pytest.raises(
        FloatingPointError, match=r"weights are not finite at epoch 1, step 1 of 2: lower optim\.lr"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "plain" / "state.pt").exists()


def test_diverged_offsets_have_no_histogram_and_end_no_run(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from zoo.scripts.inspect import offset_statistics

    from dcn_ops import DeformConv2d

    model = nn.Sequential(DeformConv2d(1, 1, 3, padding=1))
    nn.init.constant_(model[0].offset_bias, torch.nan)
    with SummaryWriter(tmp_path) as board:
        offset_statistics.log_epoch(model, torch.randn(1, 1, 8, 8), tmp_path, board, 0)
    assert "nan" in (tmp_path / "offsets.csv").read_text()


def test_a_run_needs_no_private_name_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    create_accelerator(compose_train())
    monkeypatch.delattr(AcceleratorState, "_reset_state")
    assert create_accelerator(compose_train()).mixed_precision == "no"
