"""Whole networks, plain and with the default injection: inference and a training step."""

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn

import dcn_ops
from zoo import inject_

from ..config.schema import Bench
from .measure import Row, Step, timed

MODES = {"forward": "inference", "training": "training"}


def rows_of(name: str, config: Bench) -> list[Row]:
    """Time a network in the config's modes. Ratios are to the plain network in the same mode, compiled to compiled.

    The variant "predictors" runs the plain convolutions and the convolutions that predict offsets, without
    sampling: it shows the predictors' share of the time of "dcn". "dcn composition"
    does without the native kernel.
    """
    case = f"{name} batch {config.batch}{' autocast' if config.autocast else ''}"
    compiled = ("plain compiled", "dcn compiled") if "compiled" in config.providers else ()
    composed = ("dcn composition",) if "composition" in config.providers else ()
    variants = ("plain", "predictors", "dcn", *composed, *compiled)
    rows = []
    for mode in map(MODES.__getitem__, config.modes):
        steps = {variant: _step(name, variant, mode, config) for variant in variants}
        for variant, result in timed(steps, config.rounds, config.device, seconds=0).items():
            rows.append({"case": case, "mode": mode, "provider": variant, **result})
    for row in rows:
        floor = "plain compiled" if row["provider"].endswith("compiled") else "plain"
        row["ratio"] = row["ms"] / next(r["ms"] for r in rows if (r["mode"], r["provider"]) == (row["mode"], floor))
        row["threads"] = torch.get_num_threads()
    return rows


def _step(name: str, variant: str, mode: str, config: Bench) -> Step:
    batch, device = config.batch, config.device
    torch.manual_seed(0)
    model = timm.create_model(name)
    if not variant.startswith("plain"):
        perturb(inject_(model), sampling=variant != "predictors")
    model = model.to(device).to(memory_format=torch.channels_last).train(mode == "training")
    size = resolve_data_config(model=model)["input_size"][-1]
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    run: Any = torch.compile(model, fullgraph=True, dynamic=False) if variant.endswith("compiled") else model
    half = partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=config.autocast)
    # The backward goes by the settings of its forward.
    chosen = partial(dcn_ops.settings, implementation="composition" if variant.endswith("composition") else "auto")
    if mode == "inference":

        def infer() -> None:
            with torch.no_grad(), half(), chosen():
                run(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def train() -> None:
        with half(), chosen():
            loss = F.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def perturb(model: nn.Module, sampling: bool) -> None:
    """Set the predictors to offsets of about a pixel, as after training: zero offsets would read memory in order.

    Last BatchNorms that start at zero get a weight, since otherwise the layers would not affect the scores.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.constant_(module.weight, 0.4)
        if isinstance(module, dcn_ops.DeformConv2d):
            for parameter in module.predictor_parameters():
                nn.init.normal_(parameter, std=0.02)
            if not sampling:
                module.forward = partial(_without_sampling, module)  # type: ignore[method-assign]


def _without_sampling(layer: dcn_ops.DeformConv2d, input: Tensor) -> Tensor:
    offset, mask = layer.offsets(input)
    out = layer._conv_forward(input, layer.filters(), layer.bias)
    # This keeps the prediction in the graph at almost no cost.
    return out + 0 * (offset.mean() if mask is None else offset.mean() + mask.mean())
