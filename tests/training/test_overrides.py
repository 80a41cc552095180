"""The command line: paths as they are, mistyped options, one line for what can't be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from PIL import Image
from zoo.scripts.config.command import check_overrides, check_run_folder, register
from zoo.scripts.config.overrides import parse
from zoo.scripts.config.schema import Bench, Evaluate, Export, Migrate, Predict, Train, Visualize

PATHS = [
    "/photos/küche", "/写真/1", "a=b", "(1)", "x(1)", "#1", "a&b", "two words", "a,b", "it's", 'say "x"', "1_000",
    "007", "true", "[x]", "{x}", "~/x", "C:\\new\\", "a\\'b", "%d", "a:b", "50%", "x;y", "!x", "a|b", "<a>", "`a`",
]  # fmt: skip


def checked(monkeypatch: pytest.MonkeyPatch, *arguments: str, schema: type = Train) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["dcn-train", *arguments])
    check_overrides(schema)
    return sys.argv[1:]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["data.root", "model.checkpoint_path", "resume"])
def test_a_path_needs_no_quotes(path: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (argument,) = checked(monkeypatch, f"{key}={path}")
    assert parse(argument).value() == path


def test_paths_arrive_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    paths = {"data.root": "/é (1)", "+data.kwargs.x": "a=é", "resume": "1_000", "hydra.run.dir": "é"}
    overrides = checked(monkeypatch, *(f"{key}={path}" for key, path in paths.items()))
    with initialize_config_module("zoo.conf", version_base="1.3"):
        found = compose("train", overrides=overrides, return_hydra_config=True)
    assert (found.data.root, found.data.kwargs.x, found.resume, found.hydra.run.dir) == tuple(paths.values())


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["dcn-train", f"hydra.run.dir={tmp_path}/file/x"])
    with pytest.raises(
        SystemExit, match=r"can't write into hydra\.run\.dir=.*/file/x: Not a directory; name another"
    ):
        check_run_folder()
    monkeypatch.setattr(sys, "argv", ["dcn-train", f"hydra.run.dir='{tmp_path}/ü/x'"])
    check_run_folder()
    assert not list((tmp_path / "ü" / "x").iterdir())


QUOTED = ["data.root='/a b'", "data.root=null", 'data.root="x"', "data.root=a\\=b", "~seed"]


@pytest.mark.parametrize("argument", QUOTED)
def test_what_hydra_reads_stays(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, argument) == [argument]


def test_a_sweep_over_paths_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "-m", "data.root=/a,/b") == ["-m", "data.root=/a,/b"]
    assert checked(monkeypatch, "data.root=/a,/b") == ["data.root='/a,/b'"]


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        (
            "optim.freeze=[é]",
            "can't read 'optim.freeze=[é]': each text in it needs its own quotes, \"optim.freeze=",
        ),
        ("optim.lr=(1", "can't read 'optim.lr=(1': "),
        ("é=1", "can't read 'é=1'"),
        ("experiment=finetune_resnet", "no experiment 'finetune_resnet'; did you mean finetune_resnet50"),
        ("experiment=[demo,finetune_resnet]", "no experiment 'finetune_resnet'"),
        ("data=null", "there is no data 'None'"),
        (
            "experiment=x",
            "There are: demo, detect_convnext_tiny, detect_digits, detect_efficientnet_b0, detect_internimage_tiny",
        ),
        ("data=foldr", "no data 'foldr'; did you mean folder?"),
        ("data=/photos", "There are: coco, folder, hf_scenes, hfds"),
        ("model=resnet5", "did you mean resnet50"),
        ("+optim=admw", "did you mean adamw?"),
        ("root=digits", "there is no key 'root'; did you mean data.root?"),
        ("optim.batch_size=32", "there is no key 'optim.batch_size'; did you mean data.batch_size?"),
        ("--data", "expected key=value without dashes, such as data=..., got '--data'"),
        ("--root=digits", "expected key=value without dashes, such as root=..., got '--root=digits'"),
    ],
)
def test_a_mistake_is_one_answer(argument: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as error:
        checked(monkeypatch, argument)
    assert str(error.value).startswith("error: ")
    assert answer in str(error.value)


@pytest.mark.parametrize(
    ("schema", "argument", "answer"),
    [
        (Visualize, "levels=two", "expected a whole number for levels, got levels=two"),
        (Visualize, "levels=2.5", "expected a whole number for levels, got levels=2.5"),
        (Visualize, "levels=null", "expected a whole number for levels, got levels=null"),
        (Visualize, "pretrained=maybe", "expected true or false for pretrained, got pretrained=maybe"),
        (
            Visualize,
            "data.img_size=big",
            "expected a whole number, or null for data.img_size, got data.img_size=big",
        ),
        (
            Visualize,
            "points=[0.5,0.5]",
            "expected a list of lists of numbers, such as [[0.5,0.5],[0.5,0.5]], or null for points, got "
            "points=[0.5,0.5]; did you mean points=[[0.5,0.5]]?",
        ),
        (
            Visualize,
            "points=[[a,b]]",
            "expected a list of lists of numbers, such as [[0.5,0.5],[0.5,0.5]], or null for points, got "
            "points=[[a,b]]",
        ),
        (Train, "data.img_size=big", "expected a whole number for data.img_size, got data.img_size=big"),
        (Train, "optim.lr=fast", "expected a number for optim.lr, got optim.lr=fast"),
        (
            Train,
            "variants=dcn",
            "expected a list of texts, such as [a,a] for variants, got variants=dcn; did you mean variants=[dcn]?",
        ),
        (
            Train,
            "data.crop_scale=[1]",
            "expected a list of 2 numbers, such as [0.5,0.5] for data.crop_scale, got data.crop_scale=[1]",
        ),
        (Evaluate, "severities=[1,x]", "expected a list of whole numbers, such as [1,1] for severities, got "),
        (Predict, "score=high", "expected a number for score, got score=high"),
        (Export, "batch=é", "can't read 'batch=é': "),
        (Export, "tolerance=x", "expected a number, or null for tolerance, got tolerance=x"),
        (Bench, "threads=2", "expected a list of whole numbers, such as [1,1] for threads, got threads=2; did you"),
        (Migrate, "arguments=3", "expected keys and values, such as {a: 1} for arguments, got arguments=3"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(
    schema: type, argument: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as error:
        checked(monkeypatch, argument, schema=schema)
    assert str(error.value).startswith(f"error: {answer}")
    assert len(str(error.value).splitlines()) == 1
    assert "<class" not in str(error.value)


@pytest.mark.parametrize(
    ("schema", "argument"),
    [
        (Train, "optim.lr=1"), (Train, "optim.lr=1e-3"), (Train, "seed='3'"), (Train, "dcn.stages=[2,3]"),
        (Train, "dcn.stages=null"), (Train, "data.classes=[1,b]"), (Train, "model.kwargs={a: 1}"),
        (Train, "data.crop_scale=[0,1]"), (Train, "data.img_size=${data.batch_size}"), (Train, "precision=no"),
        (Evaluate, "corruption_batches=null"), (Export, "target=[onnx]"), (Export, "size=[2,3]"),
        (Visualize, "points=[[0.5,1.0]]"),
    ],
)  # fmt: skip
def test_a_value_of_the_right_type_stays(schema: type, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = checked(monkeypatch, argument, schema=schema)
    assert kept in (argument, argument.replace("=no", "='no'"))


def test_points_may_be_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    overrides = checked(monkeypatch, "points=[[0,1],[0.5,0]]", schema=Visualize)
    with initialize_config_module("zoo.conf", version_base="1.3"):
        found = compose("visualize", overrides=overrides)
    assert found.points == [[0.0, 1.0], [0.5, 0.0]]


def test_values_of_a_sweep_are_left_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "-m", "seed=1,2", "optim.lr=range(1,3)") == [
        "-m",
        "seed=1,2",
        "optim.lr=range(1,3)",
    ]


def test_an_option_of_a_sweep_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "-m", "data=mnist_r,mnist_p")
    with pytest.raises(SystemExit, match="no data 'mnist_q'"):
        checked(monkeypatch, "-m", "data=mnist_r,mnist_q")


def test_ones_own_options_and_keys_of_other_commands_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "--config-dir", "/mine", "experiment=of_mine")
    assert checked(monkeypatch, "model=resnet5", schema=Export)
    assert checked(monkeypatch, "checkpoint=/é/x", "data=folder", schema=Evaluate) == [
        "checkpoint='/é/x'",
        "data=folder",
    ]


def test_no_experiment_is_the_default_run(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    overrides = checked(monkeypatch, "experiment=null", "seed=5")
    with initialize_config_module("zoo.conf", version_base="1.3"):
        assert compose("train", overrides=overrides) == compose("train", overrides=["seed=5"])


def test_of_several_experiments_the_last_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(monkeypatch, "experiment=null", "experiment=demo") == ["experiment=demo"]
    assert checked(monkeypatch, "experiment=demo", "seed=5", "experiment=null") == ["seed=5", "~experiment"]


def test_no_experiment_in_a_sweep_and_of_other_commands_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="there is no experiment 'None'"):
        checked(monkeypatch, "-m", "experiment=null,demo")
    with pytest.raises(SystemExit, match="there is no key 'experiment'"):
        checked(monkeypatch, "experiment=null", schema=Export)


def test_an_unknown_experiment_is_no_default_run() -> None:
    """The check of the command line doesn't see this case."""
    register()
    with (
        initialize_config_module("zoo.conf", version_base="1.3"),
        pytest.raises(Exception, match="finetune_resnet50"),
    ):
        compose("train", overrides=["experiment=finetune_resnet"])


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "zoo.scripts.train", *arguments],
        capture_output=True, text=True, timeout=120, cwd=folder, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_reads_photos_of_any_folder(tmp_path: Path) -> None:
    root = tmp_path / "Küche (1) #2, a=b & 'c'"
    for split in ("train", "validation"):
        for name in ("ä", "b"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(root / split / name / "0.png")
    arguments = ["data=folder", f"data.root={root}", "data.batch_size=2", "data.img_size=32", "dry_run=true"]
    done = command(tmp_path, *arguments, "optim.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "layer4.0.conv2" in done.stdout  # of the plan
    done = command(tmp_path, *arguments, "experiment=finetune_resnet")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no experiment 'finetune_resnet'; did you mean")
    assert "Traceback" not in done.stderr
    left = list((tmp_path / "runs").rglob("*"))
    done = command(tmp_path, *arguments, "data.root=nowhere")
    assert done.stderr.startswith("error: expected a folder")
    assert list((tmp_path / "runs").rglob("*")) == left  # it had only Hydra's records
