"""Libraries that count multiply-adds: with the handles, a conversion adds to their figure as much as to torch's."""

import contextlib
import copy
import io

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import DCNConfig, inject_
from zoo.integrations import counters

SIZE = (3, 64, 64)
NETWORKS = {
    "dense": ("resnet18", DCNConfig()),
    "depthwise": ("mobilenetv2_050", DCNConfig(kinds=("depthwise",), stages=(3, 4))),
}
AGGREGATES = {
    "v3": ("mobilenetv2_050", DCNConfig(operator="v3", keep_output=False, stages=(4,))),
    "v4": ("mobilenetv2_050", DCNConfig(operator="v4", keep_output=False, stages=(4,))),
}


def networks(names):
    return pytest.mark.parametrize(("name", "config"), names.values(), ids=names)


def torch_counts(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *SIZE))
    return counter.get_total_flops() // 2


def added(name, config, count, handles):
    """Return what a conversion adds to a library's figure with handles, to torch's, and to it without handles."""
    plain = timm.create_model(name, num_classes=10).eval()
    model = inject_(copy.deepcopy(plain), config)
    before = count(plain, {})
    return count(model, handles) - before, torch_counts(model) - torch_counts(plain), count(model, {}) - before


@networks(NETWORKS | AGGREGATES)
def test_fvcore(name: str, config: DCNConfig) -> None:
    fvcore = pytest.importorskip("fvcore.nn")

    def count(model, handles):
        analysis = fvcore.FlopCountAnalysis(model, torch.randn(1, *SIZE)).unsupported_ops_warnings(False)
        counted = analysis.set_op_handle(**handles).by_operator()
        # Unlike torch, it counts norms, of which DCNv3 has its own.
        return sum(number for operator, number in counted.items() if "norm" not in operator)

    ours, truth, without = added(name, config, count, counters.fvcore_handles())
    assert ours == truth
    assert without < truth


@networks(NETWORKS | AGGREGATES)
def test_ptflops(name: str, config: DCNConfig) -> None:
    ptflops = pytest.importorskip("ptflops")

    def count(model, hooks):
        with contextlib.redirect_stdout(io.StringIO()):
            return ptflops.get_model_complexity_info(
                copy.deepcopy(model), SIZE, as_strings=False, print_per_layer_stat=False, backend="aten",
                custom_modules_hooks=hooks,
            )[0]  # fmt: skip

    ours, truth, without = added(name, config, count, counters.ptflops_hooks())
    # It counts a bias's addition as a multiply-add.
    assert truth <= ours < 1.01 * truth
    assert without < truth


@networks(NETWORKS | AGGREGATES)
def test_calflops(name: str, config: DCNConfig) -> None:
    calflops = pytest.importorskip("calflops")
    from calflops import pytorch_ops

    def count(model, hooks):
        before = dict(pytorch_ops.MODULE_HOOK_MAPPING)
        pytorch_ops.MODULE_HOOK_MAPPING.update(hooks)
        try:
            return calflops.calculate_flops(
                copy.deepcopy(model).to("meta"), (1, *SIZE), print_results=False, output_as_string=False
            )[1]
        finally:
            pytorch_ops.MODULE_HOOK_MAPPING.clear()
            pytorch_ops.MODULE_HOOK_MAPPING.update(before)

    ours, truth, without = added(name, config, count, counters.calflops_hooks())
    assert ours == truth
    assert without < truth


@pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated:DeprecationWarning")
@networks(NETWORKS)
def test_thop(name: str, config: DCNConfig) -> None:
    thop = pytest.importorskip("thop")

    def count(model, operators):
        return int(thop.profile(model, (torch.randn(1, *SIZE),), custom_ops=operators, verbose=False)[0])

    ours, truth, without = added(name, config, count, counters.thop_ops())
    assert ours == truth
    assert without < 0


def test_torchinfo_takes_no_handle() -> None:
    torchinfo = pytest.importorskip("torchinfo")

    def count(model, _):
        return torchinfo.summary(model, (1, *SIZE), verbose=0).total_mult_adds

    ours, truth, _ = added(*NETWORKS["dense"], count, None)
    # It multiplies the predictor's weights by the channels. If this fails, docs/ecosystem.md can recommend it.
    assert ours > 10 * truth
