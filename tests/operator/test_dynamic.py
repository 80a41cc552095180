"""Compiled with symbolic sizes: the operator is one node, right for every size, and quick to compile."""

import copy
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import dcn_ops
from dcn_ops.testing import Case, make_inputs

op = torch.ops.dcn_ops.deform_conv2d
# Heights, widths and batches, none of which is another.
SIZES = ((2, 20, 28), (3, 23, 31))


def network() -> nn.Module:
    """Return a network with every kind of layer, neighbours that save a view for the backward, and one in place."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        dcn_ops.DeformConv2d(16, 16, 3, padding=1, offset_groups=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        dcn_ops.DeformConv2d(16, 24, 3, stride=2, padding=1, groups=4),
        nn.ReLU(inplace=True),
        dcn_ops.DeformConv2d(24, 24, 3, padding=1, groups=24),
        nn.BatchNorm2d(24),
        dcn_ops.DeformConv2d(24, 8, 5, padding="same"),
    )
    for layer in net.modules():
        if isinstance(layer, dcn_ops.DeformConv2d):
            nn.init.normal_(layer.offset_weight, std=0.05)
    return net


def plain(net: nn.Module) -> nn.Module:
    """Return the network with the convolution of every layer in its place."""
    modules = (m.to_conv2d() if isinstance(m, dcn_ops.DeformConv2d) else copy.deepcopy(m) for m in net)
    return nn.Sequential(*modules).train(net.training)


def step(run: Callable[[Tensor], Tensor], net: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the output and, in training mode, the gradients of all Parameters."""
    if not net.training:
        with torch.no_grad():
            return [run(image)]
    output = run(image)
    return [output.detach(), *torch.autograd.grad(output.square().mean(), list(net.parameters()))]


def compilations(net: nn.Module, how: str, backend: str) -> int:
    """Take steps with images of several sizes, compiled and eagerly; return how often the backend was called."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(net, fullgraph=True, backend=counter, dynamic={"dynamic": True}.get(how))
    for batch, height, width in SIZES:
        image = torch.randn(batch, 3, height, width, dtype=torch.float64)
        if how == "marked":
            for dim in (0, 2, 3):
                torch._dynamo.mark_dynamic(image, dim)
        torch.testing.assert_close(step(compiled, net, image), step(net, net, image))
    return counter.frame_count


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Inductor's own
@pytest.mark.parametrize("how", ["dynamic", "marked", "automatic"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_every_kind_of_layer_compiles_for_every_size_as_convolutions_do(training: bool, how: str) -> None:
    # Inductor 2.14 takes the size of a convolution's gradient as a constant, and refuses a marked one.
    backend = "aot_eager" if training and how == "marked" else "inductor"
    net = network().double().train(training)  # in which sums in another order don't show
    assert compilations(net, how, backend) <= compilations(plain(net), how, backend)


def nodes(function: Callable, *args: Tensor) -> list[object]:
    """Return the targets of the nodes of all graphs that a compiler gets with symbolic sizes."""
    targets = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        targets.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=aot_autograd(fw_compiler=record))
    compiled(*args).sum().backward()
    return targets


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_with_symbolic_sizes_the_graph_does_not_grow_with_the_work(groups: int) -> None:
    """What takes Inductor long are index formulas of symbols: the graph holds two nodes and none of those."""
    case = Case(groups=groups, filters=6, kernel=(3, 3), size=(11, 13))
    inputs = make_inputs(case).map(torch.Tensor.requires_grad_)
    own = [t for t in nodes(lambda *args: op(*args, **case.integers), *inputs) if "dcn_ops" in str(t)]
    assert own == [op.default, torch.ops.dcn_ops.deform_conv2d_backward.default]
    aten = [t for t in nodes(lambda *args: op(*args, **case.integers), *inputs) if str(t).startswith("aten")]
    assert not {t for t in aten if "embedding" in str(t) or "index" in str(t) or "sort" in str(t)}


def test_stride_padding_and_dilation_may_be_symbols() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def function(input: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        return dcn_ops.deform_conv2d(input, offset, weight, None, stride, padding, dilation)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for stride, padding, dilation in ((2, 3, 4), (3, 4, 2), (4, 2, 3)):
        case = Case(stride=(stride,) * 2, padding=(padding,) * 2, dilation=(dilation,) * 2, size=(19, 22))
        input, offset, weight, _, _ = make_inputs(case)
        expected = function(input, offset, weight, stride, padding, dilation)
        torch.testing.assert_close(compiled(input, offset, weight, stride, padding, dilation), expected)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # of torch 2.11's own
def test_an_export_to_onnx_changes_nothing_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decomposition that the exporter needs below opset 19 must not reach fake tensors, nor Inductor."""
    monkeypatch.setenv("CI", "true")  # then Inductor takes no whole operator that torch has a decomposition of
    layer, image = dcn_ops.DeformConv2d(3, 4, 3), torch.randn(2, 3, 9, 11)
    program = torch.onnx.export(layer.eval(), (image,), dynamo=True, opset_version=18, verbose=False)
    assert "GridSample" in {node.op_type for node in program.model.graph}
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(image), layer(image))
