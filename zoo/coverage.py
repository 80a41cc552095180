"""Convert every timm architecture, compare it with the plain network and train it: python -m zoo.coverage --help.

Results are lines of a JSON Lines file. A run that is started again continues after the last line; an architecture
that ended the process is recorded as such. ``--train`` adds a training step to the lines of the file. ``--table``
turns the file into Markdown.
"""

import argparse
import copy
import fnmatch
import gc
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_ops import DeformConv2d
from zoo.config import OPERATORS, DCNConfig
from zoo.coverage_table import Result, read, table
from zoo.inject import inject_
from zoo.mixers import DeformMixer2d

_DEFAULT = DCNConfig()

# Largest network that is run, with its float64 copy, in the memory of a small machine.
MAX_PARAMS = 350_000_000

# Image size of a training step: maps of at least 4x4 pixels at stride 32.
TRAINED_SIZE = 128


def architectures(pattern: str = "*", *, one_per_family: bool = False) -> list[str]:
    """Return timm's architectures, or the first one of each family."""
    names = [
        n
        for n in timm.list_models(exclude_filters=["*_dcn", "*_caffe"])
        if n != "dcn" and fnmatch.fnmatchcase(n, pattern)
    ]
    if one_per_family:
        first: dict[str, str] = {}
        for name in names:
            first.setdefault(family(name), name)
        names = list(first.values())
    return names


def family(name: str) -> str:
    """Return the module of timm that defines an architecture."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def examine(name: str, config: DCNConfig = _DEFAULT, *, compile: bool = False, script: bool = False) -> Result:
    """Convert an architecture, first without weights, and then, if memory allows it, compare it with the plain one.

    Returns:
        family; params; candidates, how many convolutions have a kernel size of at least 3, are no patch embedding
        and don't read the image; converted, how many became deformable; added, their predictors' parameters; error,
        why none did. If it ran, also input, difference and budget (twice the plain network's own rounding error,
        and a rounding step), identical, compiles and scripts (if the plain network does), and why not if it no
        longer does.
    """
    result: Result = {"name": name, "family": family(name)}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = timm.create_model(name).eval()
    result["params"] = sum(p.numel() for p in model.parameters())
    result["candidates"] = sum(_is_candidate(module) for module in model.modules())
    try:
        inject_(model, config)
    except ValueError as error:
        return result | {"converted": 0, "error": str(error)}
    result["converted"] = sum(isinstance(module, DeformConv2d | DeformMixer2d) for module in model.modules())
    result["added"] = sum(p.numel() for p in model.parameters()) - result["params"]
    if result["params"] > MAX_PARAMS:
        return result | {"skipped": f"more than {MAX_PARAMS:,} parameters"}
    compared = _compare(name, config, 1, compile=compile, script=script)
    if not compared["identical"]:  # The plain network's error may be small on one image by chance.
        compared = _compare(name, config, 8, compile=compile, script=script)
    return result | compared


def train(name: str, config: DCNConfig = _DEFAULT) -> Result:
    """Take one training step of a converted architecture, in training mode with gradients and an optimizer.

    Returns:
        trains, whether forward, backward and the step succeeded and every predictor got a finite gradient;
        otherwise why not trains; and plain trains, whether the plain network succeeds in the same step.
    """
    failure = _failure(_step, _trainable(name, config))
    if failure is None:
        return {"trains": True}
    plain = _failure(_step, _trainable(name, None))
    return {"trains": False, "why not trains": failure, "plain trains": plain is None}


def _trainable(name: str, config: DCNConfig | None) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name)
    with torch.no_grad():
        _perturb(model)
    return model.train() if config is None else inject_(model, config).train()


def _step(model: nn.Module) -> None:
    """Train on one image, or on two if a BatchNorm would refuse one value per channel."""
    images = 1 + any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    with torch.no_grad():
        image = _run_smallest(copy.deepcopy(model).eval(), images, TRAINED_SIZE)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    logits = _first(model(image)).flatten(1)
    loss = F.cross_entropy(logits, torch.arange(images) % logits.shape[1])
    loss.backward()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, DeformConv2d | DeformMixer2d)}
    moved = False
    for layer, parameter in ((n, p) for n, module in layers.items() for p in module.predictor_parameters()):
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise ValueError(f"the predictor of {layer} has no finite gradient, with a loss of {float(loss)}")
        moved |= bool(parameter.grad.count_nonzero())
    if layers and not moved:
        raise ValueError("no predictor has a gradient other than 0")
    optimizer.step()


def _is_candidate(module: nn.Module) -> bool:
    weight, kernel = getattr(module, "weight", None), getattr(module, "kernel_size", None)
    if not isinstance(weight, Tensor) or not isinstance(kernel, tuple) or len(kernel) != 2:
        return False
    stride: Any = module.stride
    # Ungrouped, with three input channels: it reads the image.
    return max(kernel) >= 3 and tuple(stride) != kernel and not (module.in_channels == 3 and module.groups == 1)


@torch.no_grad()
def _compare(name: str, config: DCNConfig, images: int, *, compile: bool, script: bool) -> Result:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    _perturb(model)
    image, plain = _run_smallest(model, images)
    exact = _first(copy.deepcopy(model).double()(image.double()))
    attempts: dict[str, Callable[[nn.Module], None]] = {}
    if compile:
        attempts["compiles"] = partial(_compile, image=image)
    if script:
        attempts["scripts"] = _script
    asked = {key: attempt for key, attempt in attempts.items() if _failure(attempt, model) is None}
    inject_(model, config)
    difference = (_first(model(image)) - exact).abs().max().item()
    budget = 2 * (plain - exact).abs().max().item() + torch.finfo(plain.dtype).eps * exact.abs().max().item()
    result: Result = {"input": list(image.shape[1:]), "difference": difference, "budget": budget}
    result["identical"] = difference <= budget
    for key, attempt in asked.items():
        failure = _failure(attempt, model)
        result[key] = failure is None
        if failure is not None:
            result[f"why not {key}"] = failure
    return result


def _perturb(model: nn.Module) -> None:
    """Perturb biases and norms: those that are initialised with zero would hide errors."""
    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.add_(0.1 * torch.randn_like(parameter))


def _run_smallest(model: nn.Module, images: int, least: int = 64) -> tuple[Tensor, Tensor]:
    """Run the model on images of the smallest size, at least ``least``, that it takes."""
    cfg: Any = model.pretrained_cfg
    channels, height, width = cfg["input_size"]
    tried = [s for s in (64, 96, 128) if least <= s < min(height, width)]
    sizes = [] if cfg.get("fixed_input_size") else [(s, s) for s in tried]
    for size in [*sizes, (height, width)]:
        image = torch.randn(images, channels, *size)
        try:
            out = _first(model(image))
        except Exception:
            if size == (height, width):
                raise
        else:
            if out.isfinite().all():
                return image, out
    raise ValueError("its output is not finite")


def _first(out: Any) -> Tensor:
    while not isinstance(out, Tensor):
        out = out[0]
    return out


def _compile(model: nn.Module, image: Tensor) -> None:
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(image)


def _script(model: nn.Module) -> None:
    torch.jit.script(copy.deepcopy(model))


def _failure(attempt: Callable[[nn.Module], object], model: nn.Module) -> str | None:
    """Return what an attempt raised, or None if it succeeded."""
    try:
        attempt(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def run(names: Iterable[str], file: Path, config: DCNConfig = _DEFAULT, **options: bool) -> None:
    """Examine architectures; write one line for each."""
    done = {result["name"] for result in read(file)} if file.exists() else set()
    for name in names:
        if name in done:
            continue
        _append(file, {"name": name, "family": family(name), "error": "ended the process"})
        start = time.perf_counter()
        try:
            result = examine(name, config, **options)
        except Exception as error:
            result = {"name": name, "family": family(name), "error": f"{type(error).__name__}: {error}"[:300]}
        result["seconds"] = round(time.perf_counter() - start, 1)
        _append(file, result)
        print(json.dumps(result), flush=True)
        gc.collect()


def run_training(names: Iterable[str], file: Path, config: DCNConfig = _DEFAULT) -> None:
    """Add a training step to the line of each architecture that was converted and run."""
    results = {result["name"]: result for result in read(file)}
    for name in names:
        result = results.get(name, {})
        if "input" not in result or "trains" in result:
            continue
        _append(file, result | {"trains": False, "why not trains": "ended the process"})
        start = time.perf_counter()
        result |= train(name, config) | {"training seconds": round(time.perf_counter() - start, 1)}
        _append(file, result)
        print(json.dumps(result), flush=True)
        gc.collect()


def _append(file: Path, result: Result) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(result) + "\n")


def main() -> None:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="*", help="glob over architectures")
    parser.add_argument("--sample", action="store_true", help="one architecture per family")
    parser.add_argument("--compile", action="store_true", help="compile those whose plain network compiles")
    parser.add_argument("--script", action="store_true", help="script those whose plain network scripts")
    parser.add_argument("--train", action="store_true", help="train those that the file has as run, one step each")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th architecture, from the i-th on")
    parser.add_argument("--file", type=Path, default=Path("coverage.jsonl"), help="results, one line each")
    parser.add_argument("--table", action="store_true", help="print the table of the file, examine nothing")
    parser.add_argument("--operator", choices=OPERATORS, default="v2", help="v3 and v4 convert average poolings")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.file)))
        return
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    index, count = map(int, args.shard.split("/"))
    names = architectures(args.names, one_per_family=args.sample)[index::count]
    if args.train:
        run_training(names, args.file, DCNConfig(operator=args.operator))
    else:
        run(names, args.file, DCNConfig(operator=args.operator), compile=args.compile, script=args.script)


if __name__ == "__main__":
    main()
