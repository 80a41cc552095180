"""What training and its tools do with the layer: torch.func, half precision, profiler, FX, processes."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import dcn_ops
import dcn_ops.interop.flops
from dcn_ops import DeformConv2d
from dcn_ops.testing import Case, Inputs, assert_within_budget, make_inputs

BOTH = pytest.mark.usefixtures("implementation")


def trained(layer: DeformConv2d) -> DeformConv2d:
    nn.init.normal_(layer.offset_weight, std=0.1)
    nn.init.normal_(layer.offset_bias, std=0.1)
    return layer


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        trained(DeformConv2d(8, 8, 3, padding=1, offset_groups=2)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randn(8, 2, generator=generator)


def train(net: nn.Module, images: Tensor, targets: Tensor, steps: int, context: Any = nullcontext) -> list[float]:
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for _ in range(steps):
        with context():
            loss = mse_loss(net(images).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# torch.func


def test_per_sample_gradients_are_those_of_a_loop() -> None:
    net = make_net()

    def loss(parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return mse_loss(functional_call(net, parameters, (image[None],)), target[None])

    def one_by_one(dtype: torch.dtype) -> dict[str, Tensor]:
        parameters = {name: p.detach().to(dtype).requires_grad_() for name, p in net.named_parameters()}
        samples = zip(*(t.to(dtype) for t in make_data()), strict=True)
        gradients = [torch.autograd.grad(loss(parameters, *s), list(parameters.values())) for s in samples]
        return dict(zip(parameters, map(torch.stack, zip(*gradients, strict=True)), strict=True))

    actual = vmap(grad(loss), (None, 0, 0))(dict(net.named_parameters()), *make_data())
    exact, same_precision = one_by_one(torch.float64), one_by_one(torch.float32)
    assert actual.keys() == exact.keys()
    for name in exact:
        assert exact[name].any(), name
        assert_within_budget(*({"output": gradients[name]} for gradients in (actual, exact, same_precision)))


# Half precision


def test_training_under_autocast_learns_as_in_float32() -> None:
    full = train(make_net(), *make_data(), 20)
    half = train(make_net(), *make_data(), 20, partial(torch.autocast, "cpu", torch.bfloat16))
    assert full[-1] < full[0] / 2
    # Five roundings of 2**-8 of what there was to lose; float32 keeps a thirteenth of it.
    assert half[-1] == pytest.approx(full[-1], abs=0.02 * full[0])


def test_a_bfloat16_network_trains() -> None:
    net = make_net().to(torch.bfloat16)
    first, second = train(net, make_data()[0].bfloat16(), make_data()[1], 2)
    assert second < first
    for name, parameter in net.named_parameters():
        assert parameter.grad.dtype == torch.bfloat16, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def half_backward(net: nn.Module, scaler: torch.amp.GradScaler, factor: float) -> None:
    images, targets = make_data()
    with torch.autocast("cpu", torch.float16):
        loss = mse_loss(net(images).float(), targets)
    scaler.scale(factor * loss).backward()


def test_gradients_are_free_of_the_scale() -> None:
    gradients = []
    for enabled in (True, False):
        net, scaler = make_net(), torch.amp.GradScaler("cpu", init_scale=1024, enabled=enabled)
        half_backward(net, scaler, 64)
        scaler.unscale_(torch.optim.SGD(net.parameters()))
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    for name, expected in gradients[1].items():
        # A power of two changes the rounding of subnormal numbers alone: of gradients as large as these, of few.
        tolerance = expected.abs().max().item() * torch.finfo(torch.float16).eps
        assert 0 < tolerance < float("inf"), name
        torch.testing.assert_close(gradients[0][name], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("factor", "scale"), [(float("inf"), 1024), (1, 2.0**60)], ids=["loss", "gradients"])
def test_a_step_that_is_not_finite_is_skipped(factor: float, scale: float) -> None:
    net, scaler = make_net(), torch.amp.GradScaler("cpu", init_scale=scale)
    layer, expected = net[3], make_net()[3].state_dict()
    half_backward(net, scaler, factor)
    # The layer alone, so that it must hand the infinity on.
    scaler.step(torch.optim.SGD(layer.parameters(), lr=0.1))
    scaler.update()
    assert scaler.get_scale() == scale / 2
    assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())


# Determinism


@pytest.fixture
def _deterministic_on_two_threads() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic_on_two_threads")
@pytest.mark.parametrize("twice", [False, True], ids=["gradients", "gradients_of_gradients"])
@BOTH
def test_training_is_deterministic(twice: bool) -> None:
    layer, image = trained(DeformConv2d(32, 32, 3, padding=1)), torch.randn(2, 32, 28, 28, requires_grad=True)
    leaves = [image, *layer.parameters()]

    def results() -> list[Tensor]:
        out = layer(image)
        gradients = torch.autograd.grad(out.square().mean(), leaves, create_graph=twice)
        if twice:
            gradients += torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
        return [out, *gradients]

    first = results()
    assert all(t.isfinite().all() for t in first)
    for _ in range(4):
        assert all(map(torch.equal, results(), first))


# Profiler and FLOP counter


@BOTH
def test_the_profiler_sees_each_call_once() -> None:
    net, (images, _) = make_net(), make_data()
    # acc_events: some versions warn without it.
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(2):
            net(images).sum().backward()
        with torch.no_grad():
            net(images)
    names = [event.name for event in profiler.events() if event.name.startswith("dcn_ops::")]
    assert sorted(names) == 3 * ["dcn_ops::deform_conv2d"] + 2 * ["dcn_ops::deform_conv2d_backward"]


def test_flops_are_those_counted_by_hand() -> None:
    # 3 filters of 2 channels, 3x3 taps, 4x5 positions; two to a multiply-add; four corners a sample.
    contraction, corners = 2 * 3 * 2 * 9 * 20, 2 * 4 * 2 * 9 * 20
    case = Case(batch=1, channels=2, filters=3, size=(4, 5))
    for trainable, backward in (
        (("weight",), contraction + corners),
        (("input",), contraction + corners),
        (("offset", "mask"), contraction + corners),
        (("bias",), 0),
        (Inputs._fields, 2 * contraction + 3 * corners),
    ):
        tensors = {name: t.requires_grad_(name in trainable) for name, t in make_inputs(case)._asdict().items()}
        with FlopCounterMode(display=False) as counter:
            dcn_ops.deform_conv2d(**tensors, padding=(1, 1)).sum().backward()
        assert counter.get_total_flops() == contraction + corners + backward, trainable


# FX and __torch_function__


def test_fx_keeps_the_operator_in_a_layer_whole() -> None:
    net, (images, _) = make_net(), make_data()
    traced = torch.fx.symbolic_trace(net)
    nodes = [node.op for node in traced.graph.nodes if node.target == torch.ops.dcn_ops.deform_conv2d]
    assert nodes == ["call_function"]
    assert torch.equal(traced(images), net(images))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*are deprecated:UserWarning")
@pytest.mark.parametrize("separable", [False, True])
def test_graph_mode_quantization_keeps_the_operator_in_float(separable: bool) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    layer = dcn_ops.DeformConv2d(4, 8, 3, padding=1, separable_predictor=separable)
    nn.init.normal_(layer.offset_weight, std=0.05)
    net, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), layer).eval(), torch.randn(4, 3, 12, 12)
    prepared = prepare_fx(net, get_default_qconfig_mapping(), (images,))
    prepared(images)
    quantized = convert_fx(prepared)
    assert torch.ops.dcn_ops.deform_conv2d in {node.target for node in quantized.graph.nodes}
    error = (quantized(images) - net(images)).abs().mean() / net(images).abs().mean()
    assert error < 0.1


def test_fx_keeps_the_function_whole() -> None:
    def function(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return dcn_ops.deform_conv2d(input.relu(), offset, weight, bias, padding=(1, 1), mask=mask)

    traced, inputs = torch.fx.symbolic_trace(function), make_inputs(Case())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [dcn_ops.deform_conv2d]
    assert torch.equal(traced(*inputs), function(*inputs))


@pytest.mark.parametrize("argument", Inputs._fields)
def test_a_tensor_subclass_sees_the_function(argument: str) -> None:
    seen = []

    class Watching(Tensor):
        @classmethod
        def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    tensors = make_inputs(Case())._asdict()
    expected = dcn_ops.deform_conv2d(**tensors, padding=(1, 1))
    out = dcn_ops.deform_conv2d(**tensors | {argument: tensors[argument].as_subclass(Watching)}, padding=(1, 1))
    assert seen == [dcn_ops.deform_conv2d]
    assert type(out) is Watching
    assert torch.equal(out.as_subclass(Tensor), expected)


# Processes


def forward_and_backward(net: nn.Module, images: Tensor) -> list[Tensor]:
    torch.set_num_threads(1)
    out = net(images)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(net.parameters()))]


def compare_with_another(_rank: int, method: str) -> None:
    net, (images, _) = make_net(), make_data()
    expected = forward_and_backward(net, images)
    with mp.get_context(method).Pool(1) as pool:
        actual = pool.apply_async(forward_and_backward, (net, images)).get(timeout=60)
    assert all(map(torch.equal, actual, expected))


def test_a_spawned_process_computes_the_same() -> None:
    compare_with_another(0, "spawn")


@pytest.mark.skipif("fork" not in mp.get_all_start_methods(), reason="needs fork")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="torch refuses autograd after a fork")
def test_a_forked_process_computes_the_same() -> None:
    # From a fresh process: where torch.compile has run, torch refuses too.
    mp.spawn(compare_with_another, ("fork",))


def data_parallel(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net)


def fully_sharded(net: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(net[3], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def train_on_half(rank: int, distribute: Callable[[nn.Module], nn.Module], folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = (folder / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    net = make_net()
    losses = train(distribute(net), *(t.chunk(2)[rank] for t in make_data()), 3)
    full = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in net.named_parameters()}
    torch.save((losses, full), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("distribute", [data_parallel, fully_sharded])
def test_two_processes_train_as_one(distribute: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    net, start = make_net(), dict(make_net().named_parameters())
    expected = train(net, *make_data(), 3)
    mp.spawn(train_on_half, (distribute, tmp_path), nprocs=2)
    (losses, parameters), (other_losses, other_parameters) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    halves = zip(losses, other_losses, strict=True)
    # Each half adds up on its own, and then the two: every step is off by some roundings of 2**-24.
    assert [(a + b) / 2 for a, b in halves] == pytest.approx(expected, rel=1e-5)
    assert parameters.keys() == start.keys()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameters[name], other_parameters[name]), name
        # In units of what training changed, which would differ by about one if a half were missing.
        moved, error = (parameter - start[name]).abs().max(), (parameters[name] - parameter).abs().max()
        assert error <= 1e-4 * moved, name
