"""dcn-train: fine-tune a timm backbone with deformable convolutions, and the plain one for comparison."""

import json
import logging
from collections.abc import Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from zoo import DCNConfig, plan

from ..config.schema import Train
from ..data.loaders import Splits, create_splits, examples, spread
from ..data.scenes.splits import targets_of
from ..inspect import cascade, figures, outputs, places
from ..storage import checkpoint, sharing
from ..storage.files import locked
from ..tasks import create as tasks
from ..tasks.task import Metrics, Targets, Task
from . import engine, preview, resume, summary, variants
from .divergence import still_layers
from .processes import create_accelerator
from .variants import Variant

_log = logging.getLogger(__name__)


@dataclass
class _Trained:
    model: nn.Module
    scores: Metrics  # of the last epoch
    batch: Tensor  # evaluation images, on the device
    targets: Targets  # of those images


def run(config: Train, folder: Path, runs: list[Path] | None = None) -> list[summary.Row]:
    """Train each variant with the same seed and schedule, save it, and report on all variants.

    Args:
        config: The composed config.
        folder: Receives a sub-folder per variant, ``results.json`` and ``sampling.png``. With ``push_to``, the best
            deformable network is pushed from there at the end.
        runs: Folders of other runs, of which ``resume="auto"`` may choose one to resume.

    Raises:
        ValueError: If a model or variant is unknown, or the recipe, data, model or conversion is refused, all
            before the first step; or if the folder holds a run, or another one uses it.
        FileNotFoundError: If data or a run to resume doesn't exist.
        FloatingPointError: If a loss is not finite.
        Stopped: On SIGTERM or Ctrl-C, once the state is saved.
        OSError: If the hub refuses the upload.
    """
    variants.check(config)
    tasks.check(config)
    accelerator = create_accelerator(config)
    # Only the first process chooses the folder: others may see another second, or have another disk mounted.
    if not config.dry_run and accelerator.is_main_process:
        folder = resume.choose(config, folder, runs or [])
    folder = broadcast_object_list([folder])[0]
    splits = _splits(config)
    task = tasks.create(config, splits)
    built = variants.build_all(config, splits, task, accelerator)
    if accelerator.is_main_process:  # after the checks, so that an error of theirs stands alone
        _log.info("the composed config:\n%s", _in_lines(config))
        _log.info("the data: %s", _about(splits, config.data.batch_size))
    if config.dry_run:
        preview.show(splits, task, config, folder)
        if "dcn" in built:
            plan(
                checkpoint.build(built["dcn"].recipe | {"dcn": None}),
                DCNConfig(**built["dcn"].recipe["dcn"]),
                input_size=splits.transform["input_size"],
            )
        return []
    if not accelerator.is_main_process:
        _train_all(built, splits, task, config, accelerator, folder)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        trained = _train_all(built, splits, task, config, accelerator, folder)
        rows = _report(trained, splits, task, config, folder) if config.report else []
    if config.push_to is not None:
        _push(folder / "dcn" / "best.safetensors", config.push_to)
    return rows


def _in_lines(config: Train) -> str:
    """Return a config as text with one line for each of its groups."""
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in asdict(config).items())


def _about(splits: Splits, batch: int) -> str:
    """Return how many images and steps there are, and the classes."""
    train, evaluate = (
        "a stream of images" if isinstance(data, IterableDataset) else f"{len(cast(Sized, data)):,} images"
        for data in (splits.train.dataset, splits.evaluate.dataset)
    )
    names = splits.classes or ()
    shown = f": {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else ""
    return f"{train} to train{_steps(splits, batch)}, {evaluate} to evaluate; {splits.num_classes} classes{shown}"


def _steps(splits: Splits, batch: int) -> str:
    """Return the steps of an epoch, and how many images don't fill a batch."""
    if isinstance(splits.train.dataset, IterableDataset):
        return ""
    steps, images = len(splits.train), len(cast(Sized, splits.train.dataset))
    left = f", without {images % batch} others each time" if steps == images // batch and images % batch else ""
    return f" ({steps} step{'s' if steps > 1 else ''} of {batch} an epoch{left})"


def _push(path: Path, repository: str) -> None:
    try:
        print(f"pushed: {sharing.push(path, repository)}")
    except (ValueError, OSError) as error:
        error.add_note(f"the run is saved; push it by dcn-share checkpoint={path} push_to={repository}")
        raise


def _train_all(
    built: dict[str, Variant], splits: Splits, task: Task, config: Train, accelerator: Accelerator, folder: Path
) -> dict[str, _Trained]:
    trained: dict[str, _Trained] = {}
    for name, variant in built.items():
        # Data that is read from its start would continue where the last training stopped.
        data = _splits(config) if trained else splits
        trained[name] = _train(name, variant, data, task, config, accelerator, folder / name)
    return trained


def _splits(config: Train) -> Splits:
    pretrained_cfg = timm.get_pretrained_cfg(config.model.name) or PretrainedCfg()
    transform = resolve_data_config(pretrained_cfg=pretrained_cfg.to_dict())
    return create_splits(config.data, transform, config.seed, targets_of(config.head.name))


def _train(
    name: str, variant: Variant, splits: Splits, task: Task, config: Train, accelerator: Accelerator, folder: Path
) -> _Trained:
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
    torch.manual_seed(config.seed)
    model = variant.model.to(accelerator.device)
    if config.channels_last and not accelerator.is_fsdp2:  # FSDP2 shards only contiguous parameters
        model = model.to(memory_format=torch.channels_last)
    scores = engine.fit(
        model, splits, task, config, accelerator, folder, variant.recipe,
        resume=config.resume is not None,
        started=lambda: resume.record(config, folder.parent),  # not for a config that doesn't fit the run's state
    )  # fmt: skip
    accelerator.free_memory()
    if accelerator.is_main_process:
        path = folder / "last.safetensors"
        shown = ", ".join(f"{title} {value}" for title, value in task.show(scores).items())
        _log.info("%s: %s, checkpoint %s", name, shown, path)
        if accelerator.is_fsdp2:  # sharded: a single process can't call it
            model = checkpoint.load(path, accelerator.device)
        if still := still_layers(load_file(path)):
            _log.warning(
                "%s: the offsets are still zero in %s; lower optim.offset_warmup_steps, or raise "
                "optim.offset_lr_scale or optim.epochs",
                *(name, ", ".join(still) if len(still) < 6 else f"{len(still)} layers"),
            )
    images, targets = examples(splits.evaluate, config.data.batch_size)
    return _Trained(model, scores, images.to(accelerator.device), targets)


def _located(trained: _Trained) -> tuple[list[cascade.SamplingLocations], Tensor]:
    """Return where each layer samples for the centre of an image, or of an object in it; and the images."""
    of_images = isinstance(trained.targets, Tensor) and trained.targets.dim() < 3  # else of objects or pixels
    chosen = spread(8 if of_images else 4, len(trained.batch))
    images, targets = trained.batch[chosen], [trained.targets[i] for i in chosen]
    _, at = places.of_targets(targets, (images.shape[2], images.shape[3]))[0]
    return cascade.of_each_layer(trained.model, images, at), images


def _report(
    trained: dict[str, _Trained], splits: Splits, task: Task, config: Train, folder: Path
) -> list[summary.Row]:
    batch = next(iter(trained.values())).batch
    models = {name: variant.model for name, variant in trained.items()}
    scores = {name: variant.scores for name, variant in trained.items()}
    rows = summary.measure(models, scores, batch, task.compiled)
    title = f"{config.model.name} on {config.data.name or config.data.root}, seed {config.seed}"
    summary.show(rows, task.show, len(batch), title, folder / "results.json")
    located, drawn = _located(trained["dcn"]) if "dcn" in trained else ([], batch)
    if located:  # DCNv3 and DCNv4 have no such picture
        figures.sampling(drawn, splits.transform, located, folder / "sampling.png")
        print(f"sampling locations: {folder / 'sampling.png'}")
    if config.task.name != "classification":
        targets, chosen = next(iter(trained.values())).targets, spread(outputs.COMPARED, len(batch))
        compared = batch[chosen], [targets[i] for i in chosen]
        outputs.compare(models, compared, splits.transform, task, splits.classes, folder / "predictions.png")
        print(f"predictions beside the truth: {folder / 'predictions.png'}")
    return rows
