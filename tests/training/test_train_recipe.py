"""dcn-train: each option of the recipe does what it says."""

import csv
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Optim
from zoo.scripts.training import optimization
from zoo.scripts.training.offsets import WithOffsets
from zoo.scripts.training.run import run

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_
from zoo.optim import param_groups

QUICK = [
    "data.max_batches=4", "data.batch_size=20", "data.eval_copies=1", "optim.epochs=1", "optim.warmup_epochs=0",
    "variants=[dcn]", "report=false", "device=cpu",
]  # fmt: skip
OFFSET = "layer2.0.conv1.offset_weight"


def trained(folder: Path, *overrides: str) -> dict[str, Tensor]:
    run(compose_train(*QUICK, *overrides), folder)
    return load_file(folder / "dcn" / "last.safetensors")


def metrics(folder: Path) -> dict[str, str]:
    return list(csv.DictReader((folder / "dcn" / "metrics.csv").read_text().splitlines()))[-1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return trained(tmp_path_factory.mktemp("plain"))


def converted() -> nn.Module:
    torch.manual_seed(0)
    model = inject_(timm.create_model("resnet10t", num_classes=4), DCNConfig(stages=(4,)))
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.offset_weight, std=0.1)
    return model


def test_offsets_are_frozen_for_the_first_steps(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    assert plain[OFFSET].norm() > 0
    later = trained(tmp_path, "optim.offset_warmup_steps=3")
    assert 0 < later[OFFSET].norm() < plain[OFFSET].norm()
    # Only one step moved them: Adam's first step is as long as the learning rate, for every weight.
    assert later[OFFSET].abs().max() < 0.5 * plain[OFFSET].abs().max()


def test_the_regulariser_keeps_offsets_small(tmp_path: Path) -> None:
    fast = ["optim.offset_lr_scale=10", "data.max_batches=10"]
    trained(tmp_path / "free", *fast)
    trained(tmp_path / "kept", *fast, "optim.offset_l2=10")
    free, kept = (float(metrics(tmp_path / name)["train/offset"]) for name in ("free", "kept"))
    assert 0 < kept < 0.5 * free


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = DeformConv2d(3, 3, 3, padding=1)
        nn.init.normal_(self.conv.offset_weight, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(input=images)


def test_offsets_of_a_layer_that_is_called_by_keyword_are_seen() -> None:
    model, x = ByKeyword(), torch.randn(2, 3, 16, 16)
    expected, offset = model(x), model.conv.offsets(x)[0]
    logits, sizes, _ = WithOffsets(model)(x)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(sizes, offset.abs().mean()[None])


@pytest.mark.parametrize("compiled", [False, True])
def test_offsets_are_seen_without_changing_the_output(compiled: bool) -> None:
    model = nn.Sequential(*(DeformConv2d(3, 3, 3, padding=1) for _ in range(2)))
    for layer in model:
        nn.init.normal_(layer.offset_weight, std=0.1)
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(module.offsets(args[0])[0]))
    model(x)
    handle.remove()
    net = WithOffsets(model)
    # Only the graph is compared; test_compiled_training_equals_eager tests Inductor's code.
    called = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    output, sizes, squares = called(x)
    assert_close(output, expected, rtol=1e-3, atol=1e-4)
    assert list(net.layers) == ["0", "1"]
    assert_close(sizes[1], seen[0].abs().mean(), rtol=1e-3, atol=1e-4)
    assert_close(squares[1], seen[0].square().mean(), rtol=1e-3, atol=1e-4)
    gradient = torch.autograd.grad(squares[1], layer.offset_weight)[0]
    assert_close(
        gradient, torch.autograd.grad(seen[0].square().mean(), layer.offset_weight)[0], rtol=1e-3, atol=1e-4
    )
    net.remove()
    assert not layer._forward_pre_hooks


class Uneven(nn.Module):
    """A network that calls one of its layers twice, one once and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.twice, self.once = (DeformConv2d(3, 3, 3, padding=1) for _ in range(3))
        for layer in (self.idle, self.twice, self.once):
            nn.init.normal_(layer.offset_weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.once(self.twice(x)))


@pytest.mark.parametrize("compiled", [False, True])
def test_layers_that_are_called_twice_or_never_keep_their_place(compiled: bool) -> None:
    model, x = Uneven(), torch.randn(2, 3, 16, 16)
    found: dict[DeformConv2d, list[Tensor]] = {model.idle: [torch.zeros(1)], model.twice: [], model.once: []}
    handles = [
        layer.register_forward_pre_hook(lambda module, args: found[module].append(module.offsets(args[0])[0]))
        for layer in (model.twice, model.once)
    ]
    expected = model(x)
    for handle in handles:
        handle.remove()
    net = WithOffsets(model)
    called = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
    for _ in range(2):
        output, sizes, squares = called(x)
        assert list(net.layers) == ["idle", "twice", "once"]
        assert_close(output, expected, rtol=1e-3, atol=1e-4)
        for i, offsets in enumerate(found.values()):
            size, square = (torch.stack([f(o).mean() for o in offsets]).mean() for f in (torch.abs, torch.square))
            assert_close(sizes[i], size, rtol=1e-3, atol=1e-4)
            assert_close(squares[i], square, rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(squares.sum(), model.twice.offset_weight)[0].any()


def test_a_network_in_checkpointed_blocks_shows_its_offsets() -> None:
    model = converted()
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        net = WithOffsets(model.train())
        logits, _, squares = net(x)
        (logits.sum() + squares.sum()).backward()
        net.remove()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_layers_near_the_image_learn_more_slowly() -> None:
    model = converted()
    scales = {}
    for group in param_groups(model, 0.05, offset_lr_scale=0.1, layer_decay=0.5):
        for parameter in group["params"]:
            scales[parameter] = group["lr_scale"]
    named = {name: scales[p] for name, p in model.named_parameters()}
    assert named["fc.weight"] == 1
    assert named["conv1.0.weight"] < named["layer1.0.conv1.weight"] < named["layer4.0.conv2.weight"] < 1
    assert named["layer4.0.conv2.offset_weight"] == pytest.approx(0.1 * named["layer4.0.conv2.weight"])


def test_the_average_of_the_weights_is_saved(tmp_path: Path, plain: dict[str, Tensor]) -> None:
    averaged = trained(tmp_path, "optim.ema=0.9")
    start = trained(tmp_path / "start", "optim.lr=0")
    moved, average = ((state["conv1.weight"] - start["conv1.weight"]).norm() for state in (plain, averaged))
    assert 0 < average < moved


@pytest.mark.parametrize("how", ["optim.mixup=0.5", "optim.cutmix=1"])
def test_mixed_images_change_the_training_and_repeat(tmp_path: Path, plain: dict[str, Tensor], how: str) -> None:
    first, second = (trained(tmp_path / name, how) for name in "ab")
    assert not torch.equal(first["fc.weight"], plain["fc.weight"])
    assert torch.equal(first["fc.weight"], second["fc.weight"])


def test_frozen_parameters_and_their_statistics_stay(tmp_path: Path) -> None:
    frozen = ["optim.freeze=[conv1,bn1,layer1*,fc.bias]", "optim.weight_decay=0.5"]
    state, start = trained(tmp_path / "a", *frozen), trained(tmp_path / "b", *frozen, "optim.lr=0")
    same = {key for key in state if torch.equal(state[key], start[key])}
    assert {"conv1.weight", "bn1.weight", "bn1.running_mean", "layer1.0.conv2.weight", "fc.bias"} <= same
    assert not {"fc.weight", "layer2.0.conv1.weight"} & same


@pytest.mark.parametrize(
    ("pattern", "answer"), [("layr1.*", "close names: layer1"), ("*", "leaves nothing to train")]
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(pattern: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        optimization.freeze(converted(), [pattern])


def test_far_offsets_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far = ["optim.opt=sgd", "optim.lr=1", "optim.offset_lr_scale=1e7", "optim.clip_grad=1"]
    with suppress(FloatingPointError):  # where it may end
        trained(tmp_path, *far)
    assert "the mean |offset| of layer" in caplog.text
    assert "set dcn.offset_bound" in caplog.text


def test_bounded_offsets_stay_in_bounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, "optim.opt=sgd", "optim.offset_lr_scale=1e7", "optim.clip_grad=1", "dcn.offset_bound=2")
    assert 0 < float(metrics(tmp_path)["train/offset"]) <= 2
    assert "the mean |offset|" not in caplog.text


def test_a_loss_that_is_not_finite_names_the_last_good_state(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"at epoch 1, step \d+: .*the last good state is .*state\.pt"):
        run(compose_train(*QUICK, "optim.lr=1e38", "optim.opt=sgd", "checkpoint_every=1"), tmp_path)
    state = torch.load(tmp_path / "dcn" / "state.pt", weights_only=True)
    assert state["position"]["step"] >= 1


def test_bfloat16_trains_close_to_float32(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    trained(tmp_path / "b", "precision=bf16")
    wide, half = (float(metrics(tmp_path / name)["train/loss"]) for name in "ab")
    assert half != wide
    assert half == pytest.approx(wide, rel=0.05)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("optim.epochs=0", r"optim\.epochs=0"),
        ("optim.ema=2", r"optim\.ema=2"),
        ("optim.accumulate=3", "multiple of 1 processes times optim.accumulate=3"),
        ("optim.sched=plateau", "depends only on the step"),
        ("optim.sched=none", "depends only on the step"),
        ("precision=fp8", "precision=fp8"),
        ("optim.freeze=[nothing]", "matches no module"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, override: str, answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        run(compose_train(*QUICK, override), tmp_path)


def test_mixup_pairs_images() -> None:
    with pytest.raises(ValueError, match="pair the images"):
        optimization.check(Optim(lr=1, epochs=1, mixup=0.2), batch_size=5, processes=1)
