"""dcn-train: fine-tune a timm backbone with deformable convolutions, beside the plain one."""

import difflib
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, broadcast_object_list
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from timm.data import resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.models import PretrainedCfg
from torch import Tensor, nn

from scripts import checkpoint, engine, plot, preview, report, resume
from scripts.config import Train, check_overrides, register
from scripts.data import Splits, create_splits
from scripts.stop import Stopped

_log = logging.getLogger(__name__)
VARIANTS = ("plain", "dcn")
PRECISIONS = (None, "no", "bf16", "fp16")


@dataclass
class _Variant:
    model: nn.Module
    top1: float
    batch: Tensor  # of evaluation images, on the device


def run(config: Train, folder: Path, runs: list[Path] | None = None) -> list[report.Row]:
    """Train each variant under one seed and schedule, save it, and report on all of them.

    Args:
        config: The composed config.
        folder: Receives a sub-folder per variant, ``results.json`` and ``sampling.png``.
        runs: Folders of other runs, of which ``resume="auto"`` may choose one to go on with.

    Raises:
        ValueError: For an unknown model or variant, or what recipe, data, model or conversion refuse.
        FileNotFoundError: For data or a run to resume that is not there.
        FloatingPointError: When a loss is not finite.
        Stopped: On SIGTERM or Ctrl-C, once the state is saved.
    """
    _check(config)
    accelerator = create_accelerator(config)
    if config.dry_run:
        preview.show(_splits(config), config, folder)
        return []
    # The first process names the folder: elsewhere another second may have passed, or another disk be mounted.
    if config.resume and accelerator.is_main_process:
        folder = resume.choose(config, folder, runs or [])
    folder = broadcast_object_list([folder])[0]
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        resume.record(config, folder)
    trained = {name: _train(name, config, accelerator, folder / name) for name in config.variants}
    return _report(trained, config, folder) if config.report and accelerator.is_main_process else []


def create_accelerator(config: Train) -> Accelerator:
    """Join the other processes, if ``accelerate launch`` or ``torchrun`` started some."""
    if config.device not in ("auto", "cpu"):
        torch.empty(0, device=config.device)  # fails here, with torch's message, where there is no such device
        os.environ["ACCELERATE_TORCH_DEVICE"] = config.device
    # Processes on CPUs join where accelerate is told so alone.
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    # A second run in this process, of a sweep, may have another precision; the processes stay joined.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.optim.accumulate, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True, dispatch_batches=False),
    )


def _check(config: Train) -> None:
    if not timm.is_model(config.model.name):
        close = difflib.get_close_matches(config.model.name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model '{config.model.name}'; close names: {', '.join(close) or '-'}")
    if unknown := set(config.variants) - set(VARIANTS):
        raise ValueError(f"expected variants among {VARIANTS}, got {sorted(unknown)}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"expected a precision among {PRECISIONS}, got {config.precision=}")


def _splits(config: Train) -> Splits:
    pretrained_cfg = timm.get_pretrained_cfg(config.model.name) or PretrainedCfg()
    transform = resolve_data_config(pretrained_cfg=pretrained_cfg.to_dict())
    return create_splits(config.data, transform, config.seed)


def _train(name: str, config: Train, accelerator: Accelerator, folder: Path) -> _Variant:
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    torch.manual_seed(config.seed)
    splits = _splits(config)
    recipe = _recipe(name, config, splits)
    model = _build(recipe, config, accelerator)
    metrics = engine.fit(model, splits, config, accelerator, folder, recipe, resume=config.resume is not None)
    accelerator.free_memory()
    if accelerator.is_main_process:
        path = folder / "last.safetensors"
        _log.info("%s: top-1 %.2f %%, checkpoint %s", name, metrics["eval/top1"], path)
        if accelerator.is_fsdp2:  # in pieces, which one process alone can't call
            model = checkpoint.load(path, accelerator.device)
    images, _ = next(iter(splits.evaluate))
    return _Variant(model, metrics["eval/top1"], images.to(accelerator.device))


def _build(recipe: checkpoint.Recipe, config: Train, accelerator: Accelerator) -> nn.Module:
    # One process of a machine downloads the weights, and the others find them.
    with accelerator.local_main_process_first():
        path = config.model.checkpoint_path
        start = Path(path) if path else None
        model: Any = checkpoint.build(recipe, pretrained=config.model.pretrained, start=start)
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"{config.model.name} has no gradient checkpointing; drop grad_checkpointing=true")
        model.set_grad_checkpointing()
    if config.sync_bn and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ValueError("sync_bn=true needs GPUs: torch has no synchronised BatchNorm on the CPU")
        model = convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    if config.channels_last and not accelerator.is_fsdp2:  # FSDP2 splits contiguous parameters alone
        model = model.to(memory_format=torch.channels_last)
    return model


def _recipe(name: str, config: Train, splits: Splits) -> checkpoint.Recipe:
    names = {"label_names": list(splits.classes)} if splits.classes else {}
    return {
        "create_model": {
            "model_name": config.model.name,
            "in_chans": config.data.in_chans,
            "num_classes": splits.num_classes,
            **config.model.kwargs,
        },
        "dcn": asdict(config.dcn) if name == "dcn" else None,
        "pretrained_cfg": {**splits.transform, **names},
    }


def _report(trained: dict[str, _Variant], config: Train, folder: Path) -> list[report.Row]:
    batch = next(iter(trained.values())).batch
    models = {name: variant.model for name, variant in trained.items()}
    rows = report.measure(models, {name: variant.top1 for name, variant in trained.items()}, batch)
    title = f"{config.model.name} on {config.data.name or config.data.root}, seed {config.seed}"
    report.show(rows, len(batch), title, folder / "results.json")
    if "dcn" in models:
        plot.draw(models["dcn"], batch[:8], folder / "sampling.png")
        print(f"sampling positions: {folder / 'sampling.png'}")
    return rows


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def _main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    runs = [path.parent for path in (folder.parents[sweep]).glob(("*/" * (1 + sweep)) + resume.NAME)]
    try:
        run(cast(Train, OmegaConf.to_object(config)), folder, runs)
    except (Stopped, KeyboardInterrupt) as stopped:
        signum = stopped.signum if isinstance(stopped, Stopped) else 2
        _exit(f"{stopped or 'interrupted'}; the same command with resume=auto goes on", 128 + signum)
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        # A sweep goes on to its own report, and a developer wants the stack.
        if sweep or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        _exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), 1)


def _exit(message: str, code: int) -> None:
    if not _rank():
        print(message, file=sys.stderr)
    sys.exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def main() -> None:
    """Entry point of the console command."""
    register()
    check_overrides(Train)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if {"-m", "--multirun"} & set(sys.argv):
            sys.exit("error: a sweep starts its own runs; launch one run with accelerate or torchrun, without -m")
        if _rank():
            # The first process makes the folder, logs and prints.
            sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    _main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
