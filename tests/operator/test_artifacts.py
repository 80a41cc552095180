"""What outlives a process: compile caches, exported programs, AOTInductor packages, TorchScript files."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
import torch
from graphs import compiled_for_graphs, targets
from torch import Tensor, nn
from torch.utils import cpp_extension

import dcn_ops
from dcn_ops import DeformConv2d
from dcn_ops.testing import CASES, Results, assert_within_budget, make_inputs, oracle, run
from zoo import DCNConfig, inject_

# torch 2.11 meets its own deprecation when it copies a graph.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]

REPOSITORY = Path(__file__).parents[2]
OPERATORS = {torch.ops.dcn_ops.deform_conv2d.default, torch.ops.dcn_ops.deform_conv2d_backward.default}
# Batch, height and width; the first is the one exported.
SIZES = ((2, 3, 13, 11), (3, 3, 9, 16))


def fresh_process(script: str, *arguments: object, packages: Path | None = REPOSITORY, caches: Path) -> str:
    """Run a script where ``packages``, if any, are found first; it may warn, as torch does of its TorchScript."""
    environment = os.environ | {"PYTHONPATH": str(packages or ""), "TORCHINDUCTOR_CACHE_DIR": str(caches)}
    command = [sys.executable, "-W", "default", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=caches, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, 3, padding=1, groups=2, offset_groups=2)
    nn.init.normal_(layer.offset_weight, std=0.2)
    nn.init.normal_(layer.offset_bias)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), layer, nn.BatchNorm2d(6), nn.ReLU()).eval()


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


# Compile caches

TRAIN = """
import json, os, sys
os.environ["DCN_OPS_NATIVE"] = "0"  # What the compiler makes of the composition is what the caches hold.
from concurrent.futures import ThreadPoolExecutor
import torch
from torch import nn
from torch._dynamo.utils import counters
import dcn_ops

file, settings, threads = sys.argv[1:]
torch.manual_seed(0)
# In eval mode: in training the norm would undo what the changed kernel does.
layer = dcn_ops.DeformConv2d(4, 4, 3, padding=1)
nn.init.normal_(layer.offset_weight, std=0.2)
net = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.BatchNorm2d(4), nn.ReLU()).eval()
input = torch.randn(2, 3, 8, 7, requires_grad=True)


def step(net):
    output = net(input)
    parameters = dict(layer.named_parameters()) | {"input": input}
    gradients = torch.autograd.grad(output.square().sum(), list(parameters.values()))
    return {"output": output.detach()} | dict(zip(parameters, gradients))


eager = step(net)

def compiled_step():
    with dcn_ops.settings(**json.loads(settings)):
        return step(torch.compile(net, fullgraph=True))


# As servers do, where a thread of a pool compiles.
torch.save((ThreadPoolExecutor().submit(compiled_step).result() if threads else compiled_step(), eager), file)
caches = [count for name in ("aot_autograd", "inductor") for count in counters[name].items()]
print(json.dumps({name: count for name, count in caches if name.endswith(("_cache_hit", "_cache_miss"))}))
"""
HIT, MISS = "autograd_cache_hit", "autograd_cache_miss"


class Trainer:
    """Takes a compiled and an eager step in a fresh process; all share one folder of caches."""

    def __init__(self, caches: Path) -> None:
        self.caches = caches

    def __call__(
        self, *, packages: Path = REPOSITORY, threads: bool = False, **settings: object
    ) -> tuple[Results, Results, dict[str, int]]:
        file = self.caches / "results.pt"
        arguments = json.dumps(settings), "threads" if threads else ""
        printed = fresh_process(TRAIN, file, *arguments, packages=packages, caches=self.caches)
        return *torch.load(file), json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def compiled(train: Trainer) -> Results:
    """Return what the process computed that compiled first."""
    results, eager, counts = train()
    assert counts.get(MISS), "the caches were not empty"
    assert HIT not in counts
    torch.testing.assert_close(results, eager)
    return results


@pytest.mark.slow
def test_a_second_process_starts_warm(train: Trainer, compiled: Results) -> None:
    results, _, counts = train()
    assert counts.get(HIT)
    assert not [name for name in counts if name.endswith("miss")]
    torch.testing.assert_close(results, compiled, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
def test_a_process_with_changed_kernels_compiles_them(
    threads: bool, train: Trainer, compiled: Results, tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "dcn_ops", tmp_path / "dcn_ops")
    source = tmp_path / "dcn_ops" / "conv" / "kernels" / "unroll.py"
    before, after = "return out.whole()\n\n\ndef backward", "return 2 * out.whole()\n\n\ndef backward"
    assert before in source.read_text()
    source.write_text(source.read_text().replace(before, after))
    if threads:  # other sources than those of the test without
        source.write_text(f"{source.read_text()}# once more\n")
        train(threads=True)  # what this one compiles, the next must not get
    results, _, counts = train(packages=tmp_path, threads=threads)
    torch.testing.assert_close(results["output"], 2 * compiled["output"])
    assert HIT not in counts


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("settings", [{"whole_operators": True}, {"workspace_limit": 2**11}], ids=str)
def test_other_settings_are_another_entry_of_the_caches(settings: dict[str, object], train: Trainer) -> None:
    results, eager, counts = train(**settings)
    assert HIT not in counts
    assert counts.get(MISS)
    torch.testing.assert_close(results, eager)


@pytest.mark.usefixtures("no_native")
@pytest.mark.parametrize("whole", [False, True])
def test_a_backend_gets_the_operator_whole_if_it_asks(whole: bool) -> None:
    case = CASES["all"]
    inputs = make_inputs(case)
    function, graphs = compiled_for_graphs(torch.ops.dcn_ops.deform_conv2d.default)
    with dcn_ops.whole_operators() if whole else nullcontext():
        results = run(function, inputs, **case.integers)
    assert [len(targets(graph) & OPERATORS) for graph in graphs] == [whole, whole]
    assert_within_budget(results, *oracle(inputs, case.conv, torch.float32))


@pytest.mark.slow
def test_the_strongest_mode_of_the_compiler_gives_the_reference() -> None:
    case = CASES["grouped"]
    inputs = make_inputs(case)
    torch._dynamo.reset()
    # "max-autotune" is "reduce-overhead" and more. Whoever compiles has compiled something else before.
    run(torch.compile(dcn_ops.deform_conv2d, backend="aot_eager"), make_inputs(CASES["no_mask"]))
    function = torch.compile(torch.ops.dcn_ops.deform_conv2d.default, fullgraph=True, mode="max-autotune")
    results = run(function, inputs, **case.integers)
    assert_within_budget(results, *oracle(inputs, case.conv, torch.float32))


# Exported programs

Program = torch.export.ExportedProgram
RUN_PROGRAM = """
import sys, torch
program, inputs, outputs, library = sys.argv[1:]
if library:
    import dcn_ops
run = torch.export.load(program).module()
torch.save([run(x) for x in torch.load(inputs)], outputs)
assert ("dcn_ops" in sys.modules) == bool(library)
"""
RUN_PACKAGE = """
import sys, torch
package, inputs, outputs = sys.argv[1:]
run = torch._inductor.aoti_load_package(package)
torch.save([run(x) for x in torch.load(inputs)], outputs)
assert "dcn_ops" not in sys.modules
"""


@pytest.fixture(scope="module")
def program() -> Program:
    shapes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    return torch.export.export(small_net(), (draw(*SIZES[0]),), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def decomposed(program: Program) -> Program:
    return program.run_decompositions(dcn_ops.decompositions())


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    torch.save([draw(*size) for size in SIZES], tmp_path / "inputs.pt")
    return tmp_path / "inputs.pt"


def assert_eager(outputs: list[Tensor], tolerance: float = 1e-6) -> None:
    """Assert that the outputs are those of the net: to within ``tolerance`` times the largest value."""
    net = small_net()
    for output, size in zip(outputs, SIZES, strict=True):
        expected = net(draw(*size))
        torch.testing.assert_close(output, expected, rtol=0, atol=tolerance * expected.max().item())


def namespaces(program: Program) -> set[str]:
    targets = (node.target for node in program.graph.nodes)
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}


def test_export_keeps_the_operator_and_decompositions_leave_aten(program: Program, decomposed: Program) -> None:
    assert [node.target in OPERATORS for node in program.graph.nodes].count(True) == 1
    assert namespaces(decomposed) == {"aten"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_saved_program_runs_at_every_size(
    program: Program, decomposed: Program, whole: bool, inputs: Path, tmp_path: Path
) -> None:
    file, outputs = tmp_path / "program.pt2", tmp_path / "outputs.pt"
    torch.export.save(program if whole else decomposed, file)
    packages, library = (REPOSITORY, "dcn_ops") if whole else (None, "")
    fresh_process(RUN_PROGRAM, file, inputs, outputs, library, packages=packages, caches=tmp_path)
    # Decomposed, positions go to [-1, 1] and back: some four roundings of 6e-8 of the size, 8 pixels at most, move
    # them by 2e-6 pixels, and a sample by that much of the difference of its neighbours.
    assert_eager(torch.load(outputs), 1e-6 if whole else 1e-5)


@pytest.fixture(scope="module")
def package(program: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("package") / "model.pt2"
    return torch._inductor.aoti_compile_and_package(program, package_path=str(file))


@pytest.mark.slow
def test_a_package_runs_without_the_library(package: str, inputs: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs.pt"
    fresh_process(RUN_PACKAGE, package, inputs, outputs, packages=None, caches=tmp_path)
    assert_eager(torch.load(outputs))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program that knows libtorch's CPU part alone: building needs no CUDA toolkit."""
    compiler = shutil.which(cpp_extension.get_cxx_compiler())
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    file = tmp_path_factory.mktemp("runner") / "aoti_runner"
    folders = cpp_extension.library_paths()
    command = [compiler, "-std=c++20", str(Path(__file__).with_name("aoti_runner.cpp")), "-o", str(file)]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}"]
    command += [f"-I{path}" for path in cpp_extension.include_paths()]
    command += [flag for path in folders for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    return file


@pytest.mark.slow
def test_a_package_runs_in_cpp(package: str, runner: Path, tmp_path: Path) -> None:
    outputs = []
    for size in SIZES:
        torch.save(draw(*size), tmp_path / "input.pt")
        subprocess.run([runner, package, tmp_path / "input.pt", tmp_path / "output.pt"], check=True)
        outputs.append(torch.load(tmp_path / "output.pt"))
    assert_eager(outputs)


# TorchScript

RUN_SCRIPT = """
import sys, torch, dcn_ops
model, input, output = sys.argv[1:]
torch.save(torch.jit.load(model)(torch.load(input)), output)
"""


def small_backbone() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), num_classes=5)
    for module in inject_(model.eval(), DCNConfig(stages=(3, 4))).modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset_weight, std=0.2)
            nn.init.normal_(module.offset_bias)
    return model


def step(model: nn.Module, input: Tensor) -> Results:
    output = model(input)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.square().sum(), parameters)
    return {"output": output.detach()} | dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda m: torch.jit.trace(m, draw(2, 3, 64, 64))], ids=["script", "trace"]
)
def test_torchscript_of_a_backbone_trains_and_survives_a_file(convert: Callable, tmp_path: Path) -> None:
    model, input = small_backbone(), draw(3, 3, 48, 64)
    scripted = convert(model)
    expected = step(model, input)
    # The second and third call run what the first has profiled.
    for _ in range(3):
        torch.testing.assert_close(step(scripted, input), expected)
    files = [tmp_path / name for name in ("model.pt", "input.pt", "output.pt")]
    torch.jit.save(scripted, files[0])
    torch.save(input, files[1])
    fresh_process(RUN_SCRIPT, *files, caches=tmp_path)
    torch.testing.assert_close(torch.load(files[2]), expected["output"])
