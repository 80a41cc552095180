"""dcn-visualize: where networks sample, how far offsets reach, effective receptive fields, pictures, errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from zoo.scripts.config.command import register
from zoo.scripts.config.schema import Visualize
from zoo.scripts.inspect import figures, offset_statistics, receptive
from zoo.scripts.inspect.cascade import cascade, of_each_layer, record
from zoo.scripts.inspect.receptive import effective_fields, side_of_half, spread, without_offsets
from zoo.scripts.inspect.visualization import run
from zoo.scripts.storage import checkpoint

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_

RECIPE = {
    "create_model": {
        "model_name": "resnet18",
        "in_chans": 1,
        "num_classes": 10,
        "layers": [1, 1, 1, 1],
        "channels": [16, 32, 64, 128],
    },
    "dcn": {"stages": [2, 3]},
}


def composed(*overrides: str) -> Visualize:
    register()
    with initialize_config_module("zoo.conf", version_base="1.3"):
        return OmegaConf.to_object(compose("visualize", overrides=list(overrides)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint whose offsets are not zero."""
    model = checkpoint.build(RECIPE)
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.offset_bias)
            nn.init.normal_(layer.offset_weight, std=0.01)
    folder = tmp_path / "dcn"
    folder.mkdir()
    checkpoint.save(model, RECIPE, folder / "last.safetensors")
    return folder / "last.safetensors"


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(1, 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(input=images)


def test_a_layer_that_is_called_by_keyword_is_seen() -> None:
    assert list(record(ByKeyword(), torch.randn(1, 1, 8, 8))) == ["conv"]


def test_each_layer_is_shown_at_its_centre_in_pixels_of_the_image() -> None:
    model = nn.Sequential(DeformConv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), DeformConv2d(1, 1, 3, padding=1))
    with torch.no_grad():
        model[2].offset_bias[0:18:2] = 1.0  # y of every tap
    first, second = of_each_layer(model, torch.randn(2, 1, 8, 8), CENTRE)
    assert (first.label, second.label) == ("0\nmap 8 × 8", "2\nmap 4 × 4")
    assert first.points.shape == (2, 9, 2)
    assert first.points.mean(1)[0].tolist() == [4.0, 4.0] == first.outputs[1].tolist()
    # On a map of half the size, pixel (2, 2) is at 4.5, and an offset of 1 is 2 pixels of the image.
    assert second.outputs[0].tolist() == [4.5, 4.5]
    assert second.points.mean(1)[1].tolist() == [6.5, 4.5]


CENTRE = torch.tensor([0.5, 0.5])


def stack(count: int = 3) -> nn.Sequential:
    return nn.Sequential(*(DeformConv2d(1, 1, 3, padding=1) for _ in range(count)))


def test_samples_of_a_fresh_stack_are_the_grid_of_all_ways_through_it() -> None:
    found = record(stack(), torch.randn(2, 1, 15, 15))
    points, weights = cascade(found, "2", 3, CENTRE)
    assert points.shape == (2, 729, 2)
    torch.testing.assert_close(weights, torch.ones(2, 729))
    ways, counts = points[0].unique(dim=0, return_counts=True)
    # 7 x 7 positions around the centre; the number of ways to each is given by the convolution of three boxes.
    assert len(ways) == 49
    box = torch.tensor([1, 3, 6, 7, 6, 3, 1])
    assert torch.equal(counts.view(7, 7), box[:, None] * box)
    assert ways.amin(0).tolist() == [4, 4]


def test_samples_follow_offsets_and_masks() -> None:
    model = stack(2)
    with torch.no_grad():
        model[1].offset_bias[0:18:2] = 2.0  # y of every tap
        model[0].offset_bias[1:18:2] = 0.5  # x of every tap
        model[1].offset_bias[18:] = -1.0  # masks
    points, weights = cascade(record(model, torch.randn(1, 1, 15, 15)), "1", 2, CENTRE)
    torch.testing.assert_close(points.mean(1)[0], torch.tensor([7 + 2.0, 7 + 0.5]))
    torch.testing.assert_close(weights, torch.full((1, 81), 2 * torch.tensor(-1.0).sigmoid().item()))


def test_samples_that_leave_the_map_end_there() -> None:
    points, _ = cascade(record(stack(2), torch.randn(1, 1, 5, 5)), "1", 2, torch.zeros(2))
    # At a corner 5 of 9 taps are outside, and each counts for 9 samples.
    assert points.isnan().any(2).sum() == 5 * 9


def test_levels_end_where_maps_do_not_fit_and_an_unknown_layer_is_answered() -> None:
    model = nn.Sequential(DeformConv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), DeformConv2d(1, 1, 3, padding=1))
    found = record(model, torch.randn(1, 1, 8, 8))
    assert cascade(found, "2", 3, CENTRE)[0].shape == (1, 9, 2)
    with pytest.raises(ValueError, match="one of 0, 2, got layer=1"):
        cascade(found, "1", 3, CENTRE)


def test_offsets_are_measured_in_pixels() -> None:
    model = stack(1)
    with torch.no_grad():
        model[0].offset_bias[0:18:2], model[0].offset_bias[1:18:2] = 3.0, 4.0
    (row,), lengths = offset_statistics.measure(model, [torch.randn(2, 1, 9, 9)] * 2)
    assert (row.mean, row.median, row.p95, row.max) == pytest.approx((5.0,) * 4)
    assert row.mask == pytest.approx(1.0)
    assert len(lengths["0"]) == 2 * 2 * 9 * 81
    # Positions y + 3 + {-1, 0, 1}, x + 4 + {-1, 0, 1} within [0, 9): of 27 the inner 18 and 15.
    assert row.outside == pytest.approx(1 - 18 * 15 / 27**2)


def test_an_epoch_is_logged_and_read_back(tmp_path: Path) -> None:
    model, images = stack(2), torch.randn(2, 1, 9, 9)
    with SummaryWriter(tmp_path) as board:
        model.train()
        for epoch in range(3):
            with torch.no_grad():
                model[0].offset_bias[:18] = float(epoch)
            offset_statistics.log_epoch(model, images, tmp_path, board, epoch)
    assert model.training
    assert [entry[:2] for entry in offset_statistics.read(tmp_path)["0"]] == [
        (epoch, pytest.approx(epoch * 2**0.5)) for epoch in range(3)
    ]
    with SummaryWriter(tmp_path) as board:  # of a run that goes on from its second epoch
        offset_statistics.log_epoch(model, images, tmp_path, board, 1)
    assert [entry[0] for entry in offset_statistics.read(tmp_path)["0"]] == [0, 1]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert offset_statistics.read(tmp_path / "elsewhere") == {}


def test_a_plain_network_logs_nothing(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as board:
        offset_statistics.log_epoch(nn.Conv2d(1, 1, 3), torch.randn(1, 1, 9, 9), tmp_path, board, 0)
    assert not (tmp_path / offset_statistics.FILE).exists()


def test_the_receptive_field_of_convolutions_is_their_window() -> None:
    model = timm.create_model("resnet18", in_chans=1, zero_init_last=False)
    fields = effective_fields(model, torch.randn(2, 1, 224, 224))
    assert list(fields) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert all(field.sum().item() == pytest.approx(1, abs=1e-4) for field in fields.values())
    rows = fields["act1"].sum(1).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (2 * 56 - 3, 2 * 56 + 3)  # 7 x 7, stride 2
    spreads = [spread(field) for field in fields.values()]
    assert spreads == sorted(spreads)


def test_numbers_of_a_field() -> None:
    field = torch.zeros(11, 11)
    field[5, 5] = 1.0
    assert (spread(field), side_of_half(field)) == (0.0, 1)
    field = torch.full((11, 11), 1 / 121)
    assert spread(field) == pytest.approx((2 * 10.0) ** 0.5)  # two axes of variance (11^2 - 1) / 12
    assert side_of_half(field) == 9  # 81 of 121; 49 are less than half


def test_offsets_widen_the_receptive_field_and_come_back() -> None:
    model = inject_(timm.create_model("resnet18", in_chans=1, zero_init_last=False), DCNConfig(stages=(2,)))
    layers = [m for m in model.modules() if isinstance(m, DeformConv2d)]
    for layer in layers:
        # Away from the centre: each tap twice as far.
        taps = torch.tensor([(y, x) for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)])
        with torch.no_grad():
            layer.offset_bias[:18] = taps.flatten()
    images = torch.randn(1, 1, 128, 128)
    wide = spread(effective_fields(model, images)["layer2"])
    with without_offsets(model):
        narrow = spread(effective_fields(model, images)["layer2"])
    assert wide > 1.2 * narrow
    assert spread(effective_fields(model, images)["layer2"]) == wide


def test_pictures_and_numbers_of_a_checkpoint(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SummaryWriter(path.parent) as board:
        for epoch in range(2):
            offset_statistics.log_epoch(checkpoint.load(path), torch.randn(4, 1, 42, 42), path.parent, board, epoch)
    drawn = run(composed(f"checkpoint={path}", "field_images=4", "images=2"), tmp_path)
    assert set(drawn) == {"sampling", "offsets", "history", "receptive"}
    for picture in drawn.values():
        pixels = Image.open(picture).convert("L")
        assert min(pixels.size) > 300
        assert len(pixels.getcolors(256) or []) > 20
    rows = json.loads((tmp_path / "offsets.json").read_text())
    assert [row["layer"] for row in rows] == [f"layer{i}.0.conv{j}" for i in (2, 3) for j in (1, 2)]
    assert min(row["mean"] for row in rows) > 0.5
    assert "layer2.0.conv2: samples followed through 2 layers" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "receptive.json").read_text())) == {
        "before training",
        "offsets set to 0",
        "after training",
    }


def test_images_are_drawn_in_their_own_colours(tmp_path: Path) -> None:
    colour, mean, std = (torch.tensor(values) for values in ((200, 40, 90), (0.485, 0.456, 0.406), (0.2, 0.3, 0.4)))
    image = ((colour / 255 - mean) / std)[None, :, None, None].expand(1, 3, 24, 24)
    layer = DeformConv2d(3, 3, 3, padding=1)
    found = of_each_layer(nn.Sequential(layer), image, CENTRE)
    figures.sampling(image, {"mean": mean.tolist(), "std": std.tolist()}, found, tmp_path / "sampling.png")
    drawn = {pixel: count for count, pixel in Image.open(tmp_path / "sampling.png").convert("RGB").getcolors(10**6)}
    assert drawn.get((200, 40, 90), 0) > 10_000


def test_a_plain_network_of_timm_has_a_receptive_field(tmp_path: Path) -> None:
    drawn = run(composed("name=resnet18", "field_images=2"), tmp_path)
    assert set(drawn) == {"receptive"}


def test_images_have_the_size_that_the_network_was_trained_with(tmp_path: Path) -> None:
    recipe = {**RECIPE, "pretrained_cfg": {"input_size": [1, 56, 56], "mean": [0.5], "std": [0.5]}}
    checkpoint.save(checkpoint.build(recipe), recipe, tmp_path / "last.safetensors")
    for split in ("a", "b"):
        (tmp_path / "images" / "validation" / split).mkdir(parents=True)
        Image.new("RGB", (90, 70)).save(tmp_path / "images" / "validation" / split / "0.webp")
    seen = []
    config = composed(
        f"checkpoint={tmp_path / 'last.safetensors'}", "data=folder", f"data.root={tmp_path / 'images'}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receptive, "effective_fields", lambda model, images: seen.append(images.shape) or {})
        patch.setattr(figures, "receptive_fields", lambda *_: None)
        run(config, tmp_path)
    assert set(seen) == {(2, 1, 56, 56)}


@pytest.mark.parametrize(
    ("overrides", "error", "answer"),
    [
        ([], ValueError, "one of checkpoint=PATH and name=NAME"),
        (["name=resnet500"], ValueError, r"close names: .*resnet50"),
        (["checkpoint=nowhere.safetensors"], FileNotFoundError, "no checkpoint 'nowhere.safetensors'"),
        (["checkpoint=PATH", "layer=layer9"], ValueError, "got layer=layer9"),
        (["checkpoint=PATH", "points=[[1.5,0.5]]"], ValueError, r"with y and x in \[0, 1\]"),
        (["checkpoint=PATH", "levels=0"], ValueError, "levels=0"),
    ],
)
def test_what_does_not_fit_is_answered(
    overrides: list[str], error: type[Exception], answer: str, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=answer):
        run(composed(*(o.replace("PATH", str(path)) for o in overrides), "field_images=2"), tmp_path)


def test_images_of_other_channels_are_refused(path: Path, tmp_path: Path) -> None:
    config = composed(f"checkpoint={path}")
    recipe = {**RECIPE, "create_model": {**RECIPE["create_model"], "in_chans": 3}}
    checkpoint.save(checkpoint.build(recipe), recipe, path)
    with pytest.raises(ValueError, match="reads 3 channels, the data have 1: set data="):
        run(config, tmp_path)


@pytest.mark.slow
def test_the_command_answers_a_typo_and_draws(path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "zoo.scripts.visualize",
        f"checkpoint={path}",
        "field_images=2",
    ]
    done = subprocess.run([*command, "layr=x"], capture_output=True, text=True, timeout=120)
    assert "did you mean layer?" in done.stderr
    folder = f"hydra.run.dir={tmp_path / 'failed'}"
    done = subprocess.run([*command, "layer=nope", folder], capture_output=True, text=True, timeout=120)
    assert "got layer=nope" in done.stderr
    assert not (tmp_path / "failed").exists()  # it had only Hydra's records
    done = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'out'}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "receptive.png").exists()
