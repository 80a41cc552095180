"""dcn-export: every target that CI has, from a checkpoint to a file in its own runtime; and the examples."""

import json
import subprocess
import sys
from pathlib import Path

import cmake
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy import photos, quantize, report, runtimes, source, targets, verify
from zoo.scripts.deploy.report import Row
from zoo.scripts.deploy.run import run
from zoo.scripts.storage import checkpoint

import zoo
from dcn_ops import DeformConv2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
REPOSITORY = Path(__file__).parents[2]
SIZE = 48
RECIPE = {
    "create_model": {
        "model_name": "resnet18",
        "layers": (1, 1, 1, 1),
        "channels": (8, 8, 16, 16),
        "num_classes": 7,
    },
    # Two layers, of stride 2 and 1: each costs Inductor and the C++ compiler seconds.
    "dcn": {"include": ("layer3.0.conv1", "layer4.0.conv2")},
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "label_names": [f"class {i}" for i in range(7)]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of a small network whose layers deform, and whose classes differ."""
    torch.manual_seed(0)
    model = checkpoint.build(RECIPE).eval()
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset_weight, std=0.1)
            nn.init.normal_(module.offset_bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    path = tmp_path_factory.mktemp("run") / "small.safetensors"
    checkpoint.save(model, RECIPE, path)
    return path


def config(trained: Path, folder: Path, **changes: object) -> Export:
    return Export(checkpoint=str(trained), folder=str(folder), size=[SIZE], rounds=1, threads=1, **changes)


def rows_of(configuration: Export) -> dict[str, Row]:
    return {row.target: row for row in run(configuration)}


def assert_works(row: Row, tolerance: float = 1e-3) -> None:
    assert row.reason is None
    assert row.relative <= tolerance
    assert row.top1 == 1
    assert Path(row.file).stat().st_size > 0
    assert row.ms > 0


def facts_of(target: str, file: str) -> dict[str, str]:
    """Return the metadata of a file, as its runtime reads it."""
    known = dict.fromkeys(("input_size", "mean", "label_names"), "")
    if target == "onnx":
        return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    if target == "openvino":
        model = openvino.Core().read_model(file)
        return {name: model.get_rt_info(name).astype(str) for name in known}
    if target == "torchscript":
        torch.jit.load(file, _extra_files=known)
    else:
        torch.export.load(file, extra_files=known)
    return known


@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript", "torch-export"])
def test_a_target_takes_every_size(target: str, trained: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target=target, dynamic="size", plain=target == "onnx"))[target]
    assert_works(row)
    assert (row.ratio is not None) == (target == "onnx")
    assert row.dynamic == "batch, height, width"
    saved = json.loads(Path(f"{row.file}.json").read_text())
    assert [r["target"] for r in saved["rows"]] == ["eager", target]
    known = facts_of(target, row.file)
    assert json.loads(known["input_size"]) == [3, SIZE, SIZE]
    assert json.loads(known["mean"]) == [0.5] * 3
    assert json.loads(known["label_names"]) == RECIPE["pretrained_cfg"]["label_names"]
    others = {"small.bin"} if target == "openvino" else set()
    assert {path.name for path in tmp_path.iterdir()} == {
        Path(row.file).name,
        f"{Path(row.file).name}.json",
        *others,
    }


def test_executorch_takes_every_batch(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="an extra of its own, large: pip install -e '.[executorch]'")
    row = rows_of(config(trained, tmp_path, target="executorch", dynamic="batch", plain=False))["executorch"]
    assert_works(row)
    assert not row.library


@pytest.mark.parametrize("target", ["torchscript", "torch-export", "onnx"])
def test_decomposed_files_need_no_library(target: str, trained: Path, tmp_path: Path) -> None:
    dynamic = "none" if target == "torchscript" else "batch"
    row = rows_of(config(trained, tmp_path, target=target, decompose=True, dynamic=dynamic, plain=False))[target]
    assert row.reason is None
    assert not row.library
    assert row.relative <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
def test_samples_are_gathered_on_request(opset: int, trained: Path, tmp_path: Path) -> None:
    more = {"decompose": True, "sampling": "gather", "opset": opset, "plain": False}
    row = rows_of(config(trained, tmp_path, target="onnx", **more))["onnx"]
    assert_works(row)
    assert not {"GridSample", "DeformConv"} & {node.op_type for node in onnx.load(row.file).graph.node}


def test_half_precision_takes_and_gives_float32(trained: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target="onnx", dtype="float16", plain=False))["onnx"]
    assert row.reason is None
    assert 1e-7 < row.relative <= 2e-2
    assert Path(row.file).name == "small-float16.onnx"


@pytest.mark.slow
def test_int8_leaves_deformable_layers_and_their_predictors_alone(trained: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target="onnx", int8=True))["onnx"]
    assert row.reason is None
    assert row.top1 >= 0.75
    graph = onnx.load(row.file).graph
    makers = {output: node for node in graph.node for output in node.output}
    quantised = {
        n.name: n.input[1] in makers and makers[n.input[1]].op_type == "DequantizeLinear"
        for n in graph.node
        if n.op_type == "Conv"
    }
    assert any(quantised.values())
    assert not any(quantised[name] for name in quantize._predictors(onnx.load(row.file)))
    (weights,) = {makers.get(n.input[1]) is None for n in graph.node if n.op_type == "DeformConv"}
    assert weights, "a deformable layer's weight is quantised"


@pytest.mark.slow
def test_a_wrong_export_leaves_no_file(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(job: targets.Job, file: Path) -> None:
        torch.jit.save(torch.jit.trace(nn.Sequential(job.model, nn.ReLU()), job.images), file)

    wrong = targets.Target(".pt", write, library="always")
    monkeypatch.setitem(targets.TARGETS, "torchscript", wrong)
    row = rows_of(config(trained, tmp_path, target="torchscript", plain=False))["torchscript"]
    assert "outputs differ from eager's by" in row.reason
    assert row.file is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_its_runtime_refuses_is_an_error(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(verify.VerificationError, match="a fresh process can't run it"):
        verify.run([("onnx", tmp_path / "model.onnx")], [torch.ones(1)], library=False, threads=1, rounds=1)


@pytest.mark.slow
def test_what_a_target_can_not_do_is_said_before(trained: Path, tmp_path: Path) -> None:
    rows = rows_of(config(trained, tmp_path, target=["compile", "openvino"], int8=True, plain=False))
    assert "use dynamic=none" in rows["compile"].reason
    assert "int8 is exported to" in rows["openvino"].reason
    rows = rows_of(config(trained, tmp_path, target="torchscript", decompose=True, plain=False))
    assert "use dynamic=none" in rows["torchscript"].reason


@pytest.mark.slow
def test_the_command_fails_where_a_target_does(trained: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "zoo.scripts.export",
        f"checkpoint={trained}",
        f"size=[{SIZE}]",
    ]
    command += [f"folder={tmp_path}", "target=compile", "dynamic=batch", "rounds=1", "plain=false"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: no file for compile" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["name", "folder"])
def test_the_command_takes_a_name_of_timm_and_a_folder_of_save(kind: str, tmp_path: Path) -> None:
    model = "test_resnet"
    if kind == "folder":
        zoo.save(zoo.inject_(timm.create_model(model)), tmp_path / "saved")
        model = str(tmp_path / "saved")
    command = [sys.executable, "-W", "ignore", "-m", "zoo.scripts.export", f"model={model}", f"size=[{SIZE}]"]
    command += [f"folder={tmp_path}", "target=torchscript", "rounds=1", "plain=false"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{Path(model).name}.pt").stat().st_size > 0


def test_a_folder_of_classes_gives_the_accuracy(tmp_path: Path) -> None:
    for name, grey in (("bright", 200), ("dark", 20)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (9, 7), (grey, grey, grey)).save(tmp_path / name / f"{i}.png")
    found = photos.read(str(tmp_path), 64)
    assert found.classes == ["bright", "bright", "dark", "dark"]
    assert photos.labels_of(found, nn.Identity(), 2) == [0, 0, 1, 1]
    assert photos.labels_of(photos.read(str(tmp_path), 3), nn.Identity(), 2) in ([0, 0, 1], [0, 1, 1])
    assert photos.labels_of(found, nn.Identity(), 3) is None
    assert photos.batch(found.images, 5, (1, 8, 6), nn.Identity()).shape == (5, 1, 8, 6)


def test_the_table_says_of_how_many_images_the_accuracy_is(tmp_path: Path) -> None:
    row = report.Row("onnx", top1=1.0, accuracy=(0.90625, 0.875), labelled=64)
    (tmp_path / "x.md").write_text("<!-- t -->\n<!-- /t -->\n")
    report.write_matrix([row], "title", tmp_path / "x.md", "t")
    assert "| 100 % as eager (accuracy 90.6 → 87.5 % of 64 images) |" in (tmp_path / "x.md").read_text()


def test_images_are_read_and_numbered_as_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in (("img10", 65535), ("img2", 32768)):
        (tmp_path / name / "deep").mkdir(parents=True)
        Image.fromarray(np.full((7, 9), value, np.uint16)).save(tmp_path / name / "deep" / "a.tif")
        (tmp_path / name / ".hidden.png").write_bytes(b"no image")
    found = photos.read(str(tmp_path), 64)
    assert found.classes == ["img2", "img10"]
    assert photos.labels_of(found, nn.Identity(), 2) == [0, 1]
    whole = photos.batch(found.images, 2, (1, 4, 4), nn.Identity())
    assert whole[0].max() < whole[1].min()  # not both white
    network = timm.create_model("test_resnet", num_classes=3)
    network.pretrained_cfg["label_names"] = ("img10", "other", "img2")
    assert photos.labels_of(found, network, 3) == [2, 0]
    network.pretrained_cfg["label_names"] = ("img10", "other", "third")
    assert photos.labels_of(found, network, 3) is None
    assert "no accuracy: the network has no class img2; it has img10, other, third" in caplog.text


def test_images_without_classes_have_none(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("b.png", "a.png", "more/c.png"):
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    found = photos.read(str(tmp_path), 2)
    assert (len(found.images), found.classes) == (2, None)
    with pytest.raises(FileNotFoundError, match=r"got images=.*nowhere, which doesn't exist"):
        photos.read(str(tmp_path / "nowhere"), 2)


@pytest.mark.parametrize("name", ["text.png", "cut.png", "nan.tif"])
def test_an_image_that_can_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    if name == "nan.tif":
        Image.fromarray(np.full((7, 9), np.nan, np.float32)).save(tmp_path / name)
    else:
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"no image" if name == "text.png" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"can't read the image .*{name}: .*; repair or delete it"):
        photos.read(str(tmp_path), 64)


@pytest.mark.parametrize("size", [64, [64], [64, 64]])
def test_a_size_is_one_number_or_two(size: object) -> None:
    assert source.load(None, "test_resnet", size).size == (3, 64, 64)


@pytest.mark.parametrize("size", [0, "large", [], [1, 2, 3], [64.5], {"a": 1}])
def test_what_is_no_size_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"expected size=SIDE or size=\[HEIGHT, WIDTH\], .* got size="):
        source.load(None, "test_resnet", size)


def test_a_saved_network_and_its_plain_twin(tmp_path: Path) -> None:
    zoo.save(zoo.inject_(timm.create_model("test_resnet")), tmp_path / "saved")
    loaded = source.load(None, str(tmp_path / "saved"), [SIZE])
    assert (loaded.name, loaded.size) == ("saved", (3, SIZE, SIZE))
    plain = source.plain(loaded.model)
    assert not any(isinstance(m, DeformConv2d) for m in plain.modules())
    assert any(isinstance(m, DeformConv2d) for m in loaded.model.modules())
    assert source.plain(plain) is None


# Inductor's compiler and C++


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.ppm"
    photos.read(None, 1).images[0].resize((96, 80)).save(path)
    return path


def best(printed: str) -> tuple[list[int], Tensor]:
    lines = [line.split()[:2] for line in printed.splitlines()]
    return [int(index) for index, _ in lines], torch.tensor([float(score) for _, score in lines])


@pytest.mark.slow
def test_an_aoti_package_runs_in_python_and_in_the_cpp_example(trained: Path, photo: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target="aoti", plain=False))["aoti"]
    assert_works(row)  # in Python
    assert not row.library
    tool = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    root = f"-DTORCH_ROOT={torch.__path__[0]}"
    subprocess.run(
        [tool, "-S", REPOSITORY / "examples/cpp", "-B", tmp_path / "build", root], check=True, capture_output=True
    )
    subprocess.run([tool, "--build", tmp_path / "build"], check=True, capture_output=True)
    command = [tmp_path / "build" / "classify", row.file, photo, str(SIZE), "0.5", "0.25,0.25,0.25"]
    classes, scores = best(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pixels = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None] / 255
    pixels = nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)
    expected = checkpoint.load(trained)((pixels - 0.5) / 0.25)[0].topk(5)
    assert classes == expected.indices.tolist()
    torch.testing.assert_close(scores, expected.values, rtol=1e-3, atol=1e-3)
    assert best(subprocess.run(command[:3], check=True, capture_output=True, text=True).stdout)[0] == classes
    for place, value, message in (
        (3, "large", 'expected SIZE of numbers with commas, got "large"'),
        (3, "0", "expected SIZE of 1 pixel or more, got 0"),
        (2, "nowhere.ppm", "can't open nowhere.ppm"),
        (3, str(SIZE + 16), f"expected images of the shape exported, [any, 3, {SIZE}, {SIZE}], got [1, 3, 64, 64]"),
    ):
        broken = subprocess.run(
            [*command[:place], value, *command[place + 1 :]], check=False, capture_output=True, text=True
        )
        assert broken.returncode == 1
        assert message in broken.stderr


@pytest.mark.slow
def test_the_python_example_classifies_as_eager_does(trained: Path, photo: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target="onnx", plain=False))["onnx"]
    command = [sys.executable, REPOSITORY / "examples/onnxruntime_classify.py", row.file, photo]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(line.endswith(f"class {line.split()[0]}") for line in printed.splitlines())
    given = [*command, "--size", str(SIZE), "--mean", "0.5", "--std", "0.25"]
    assert subprocess.run(given, check=True, capture_output=True, text=True).stdout == printed
    classes, scores = best(printed)
    image = Image.open(photo).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    expected = checkpoint.load(trained)((pixels - 0.5) / 0.25)[0].topk(5)
    assert classes == expected.indices.tolist()
    torch.testing.assert_close(scores, expected.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["photo.ppm", "--size", "64"], f"error: the network takes images of {SIZE}x{SIZE}, got --size 64"),
        (["photo.ppm", "--mean", "0.5", "0.5"], "error: the network has 3 channels: give one --mean and --std"),
        (["nowhere.ppm"], "error: [Errno 2] No such file or directory"),
        (["small.onnx"], "error: cannot identify image file"),
    ],
)
def test_mistakes_with_the_python_example_are_one_line(
    more: list[str], message: str, onnx_file: Path, photo: Path
) -> None:
    (onnx_file.parent / "photo.ppm").write_bytes(photo.read_bytes())
    command = [sys.executable, REPOSITORY / "examples/onnxruntime_classify.py", onnx_file, *more]
    done = subprocess.run(command, cwd=onnx_file.parent, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def onnx_file(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return Path(rows_of(config(trained, folder, target="onnx", plain=False))["onnx"].file)


@pytest.mark.slow
def test_caches_start_another_process_warm(trained: Path, tmp_path: Path) -> None:
    row = rows_of(config(trained, tmp_path, target="compile", dynamic="none", plain=False))["compile"]
    assert row.reason is None
    assert row.relative <= 1e-3


def test_the_runner_knows_nothing_of_the_project() -> None:
    source_code = Path(runtimes.__file__).read_text()
    assert "import zoo.scripts" not in source_code
    assert "from zoo.scripts" not in source_code
    assert "import zoo" not in source_code
