"""dcn-train: fine-tune a timm backbone with deformable convolutions, beside the plain one."""

import difflib
import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import hydra
import timm
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from scripts import checkpoint, engine, plot, report
from scripts.config import Train, check_overrides, register
from scripts.data import create_splits

_log = logging.getLogger(__name__)
VARIANTS = ("plain", "dcn")


@dataclass
class _Variant:
    model: nn.Module
    top1: float
    batch: Tensor  # of evaluation images, on the device


def run(config: Train, folder: Path) -> list[report.Row]:
    """Train each variant under one seed and schedule, save it, and report on all of them.

    Args:
        config: The composed config.
        folder: Receives a sub-folder per variant, ``results.json`` and ``sampling.png``.

    Raises:
        ValueError: For an unknown model or variant, no epoch, or what the data, the model or the conversion refuse.
    """
    if config.optim.epochs < 1:
        raise ValueError(f"expected at least one epoch, got {config.optim.epochs=}")
    if not timm.is_model(config.model.name):
        close = difflib.get_close_matches(config.model.name, timm.list_models(), n=5)
        raise ValueError(f"timm has no model '{config.model.name}'; close names: {', '.join(close) or '-'}")
    if unknown := set(config.variants) - set(VARIANTS):
        raise ValueError(f"expected variants among {VARIANTS}, got {sorted(unknown)}")
    device = _device(config.device)
    trained = {name: _train(name, config, device, folder / name) for name in config.variants}
    return _report(trained, config, folder) if config.report else []


def _train(name: str, config: Train, device: torch.device, folder: Path) -> _Variant:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    pretrained_cfg = timm.get_pretrained_cfg(config.model.name) or PretrainedCfg()
    transform = resolve_data_config(pretrained_cfg=pretrained_cfg.to_dict())
    splits = create_splits(config.data, transform, config.seed)
    recipe = _recipe(name, config, splits.num_classes)
    model = checkpoint.build(
        recipe, pretrained=config.model.pretrained, checkpoint_path=config.model.checkpoint_path
    ).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)

    path = folder / "last.safetensors"
    metrics = engine.fit(
        model, splits, config, device, folder, name, save=lambda: checkpoint.save(model, recipe, path)
    )
    _log.info("%s: top-1 %.2f %%, checkpoint %s", name, metrics["eval/top1"], path)
    images, _ = next(iter(splits.evaluate))
    return _Variant(model, metrics["eval/top1"], images.to(device))


def _recipe(name: str, config: Train, num_classes: int) -> checkpoint.Recipe:
    return {
        "create_model": {
            "model_name": config.model.name,
            "in_chans": config.data.in_chans,
            "num_classes": num_classes,
            **config.model.kwargs,
        },
        "dcn": asdict(config.dcn) if name == "dcn" else None,
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


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def _main(config: DictConfig) -> None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        run(cast(Train, OmegaConf.to_object(config)), folder)
    except KeyboardInterrupt:
        sys.exit(f"interrupted; checkpoints of the last whole epochs are in {folder}")


def main() -> None:
    """Entry point of the console command."""
    register()
    check_overrides(Train)
    _main()


if __name__ == "__main__":
    main()
