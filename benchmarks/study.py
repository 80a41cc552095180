"""Does a deformable convolution help, at equal parameters and at equal time?

    python benchmarks/study.py digits     plain, wider, longer, DCNv1, DCNv2 on four distortions of MNIST
    python benchmarks/study.py photos     fine-tuning EfficientNet-Lite0 from its ImageNet weights
    python benchmarks/study.py cells --root BCCD         detection of blood cells; a folder in VOC's layout
    python benchmarks/study.py nuclei --root NUCLEI      segmentation of nuclei; images, instances and index.csv
    python benchmarks/study.py report     table and picture of what is there

Every finished run is a line of ``benchmarks/results/study-*.jsonl``; runs that stand there are not run again, so
that an interruption costs the run under way. Time is the CPU time of one thread, which neighbours disturb less.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parent))
import study_photos
import study_report
import study_rows
import study_scenes
from study_rows import CHANNELS, COMMAND, RESULTS, RUNS, append, channels_with, config_of, has, rows
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.storage import checkpoint
from zoo.scripts.storage.provenance import provenance

DISTORTIONS = ("mnist_r", "mnist_rts", "mnist_p", "mnist_e")
# variant: (what dcn-train calls it, its overrides)
DIGITS: dict[str, tuple[str, list[str]]] = {
    "plain": ("plain", []),
    "dcnv2": ("dcn", []),
    "wider": ("plain", []),  # channels so that it has the parameters of dcnv2
    "longer": ("plain", []),  # epochs so that it trains for the time of dcnv2
    "dcnv1": ("dcn", ["dcn=v1"]),
}


def train(variant: str, overrides: list[str], folder: Path, final: dict[str, Any]) -> dict[str, Any]:
    """Train one classifier, and evaluate its last weights on the data with ``final`` changed."""
    config, seconds = study_rows.train(variant, overrides, folder)
    for key, value in final.items():
        setattr(config.data, key, value)
    model = checkpoint.load(folder / variant / "last.safetensors")
    transform = timm.data.resolve_data_config({}, model=model)
    splits = create_splits(config.data, transform, config.seed)
    with torch.inference_mode():
        right = torch.cat([model(images).argmax(1) == labels for images, labels in splits.evaluate])
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "top1": 100 * right.double().mean().item(),
        "parameters": parameters,
        "epochs": config.optim.epochs,
        "cpu_seconds": seconds,
    }


def digits(seeds: list[int], epochs: int) -> None:
    """Run what is missing of the study on digits."""
    path = RESULTS / "study-digits.jsonl"
    quick = ["data.eval_copies=1"]  # between epochs; the number that counts is of all copies
    ratio = time_ratio(path, quick, epochs)
    wider = f"model.kwargs.channels={matched_channels()}"
    extra = {
        "wider": [wider],
        "longer": [f"optim.epochs={round(ratio * epochs)}"],
    }
    for seed in seeds:
        for data in DISTORTIONS:
            for variant, (name, overrides) in DIGITS.items():
                key = {"study": "digits", "data": data, "variant": variant, "seed": seed}
                arguments = [f"data={data}", f"seed={seed}", f"optim.epochs={epochs}", *quick, *overrides]
                arguments += extra.get(variant, [])
                finish(path, key, name, arguments, {"eval_copies": 5})


def photos(seeds: list[int], epochs: int) -> None:
    """Run what is missing of the study on photos of solar cells."""
    path = RESULTS / "study-photos.jsonl"
    common = study_photos.prepare(RUNS / "photos")
    if not path.exists():
        append(path, {"of_epochs": epochs, **provenance(COMMAND)})

    def finish_one(variant: str, name: str, seed: int, count: int) -> None:
        key = {"study": "photos", "data": "elpv", "variant": variant, "seed": seed}
        finish(path, key, name, [*common, f"seed={seed}", f"optim.epochs={count}"], {})

    for seed in seeds:
        finish_one("plain", "plain", seed, epochs)
        finish_one("dcnv2", "dcn", seed, epochs)
    # A calibration of its own would cost as much as a run: the runs themselves say how much longer one takes.
    seconds = {
        variant: statistics.median(row["cpu_seconds"] for row in rows(path) if row.get("variant") == variant)
        for variant in ("plain", "dcnv2")
    }
    for seed in seeds:
        finish_one("longer", "plain", seed, round(epochs * seconds["dcnv2"] / seconds["plain"]))


def finish(path: Path, key: dict[str, Any], name: str, overrides: list[str], final: dict[str, Any]) -> None:
    """Train one network and append its row, unless it stands there."""
    if has(path, key):
        return
    folder = RUNS / "-".join(str(value) for value in key.values())
    row = train(name, overrides, folder, final)
    here = f"{Path.cwd()}/"
    append(path, {**key, **row, "overrides": [override.replace(here, "") for override in overrides]})


def time_ratio(path: Path, overrides: list[str], epochs: int, rounds: int = 3) -> float:
    """Return how much longer an epoch of DCNv2 takes than one of the plain network; measured once, then read."""
    for row in rows(path):
        if "ratio" in row:
            if row["of_epochs"] != epochs:
                raise ValueError(
                    f"{path} is of {row['of_epochs']} epochs, got {epochs=}: move it, or ask for as many"
                )
            return row["ratio"]
    times: dict[str, list[float]] = {"plain": [], "dcn": []}
    for i in range(rounds):
        for name, values in times.items():
            row = train(name, [*overrides, "optim.epochs=1"], RUNS / f"calibrate-{i}", {})
            values.append(row["cpu_seconds"])
    ratio = statistics.median(times["dcn"]) / statistics.median(times["plain"])
    append(
        path,
        {"ratio": ratio, "of_epochs": epochs, "cpu_seconds": times, **provenance(COMMAND)},
    )
    return ratio


def matched_channels() -> list[int]:
    """Return channels of the plain ResNet whose parameters come closest to those of DCNv2."""
    config = config_of([])

    def count(dcn: dict[str, Any] | None, channels: list[int]) -> int:
        kwargs = {"model_name": config.model.name, "in_chans": 1, "num_classes": 10, **config.model.kwargs}
        model = checkpoint.build({"create_model": {**kwargs, "channels": channels}, "dcn": dcn})
        return sum(p.numel() for p in model.parameters())

    return channels_with(count({}, list(CHANNELS)), lambda channels: count(None, channels))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "photos", *study_scenes.STUDIES, "report"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", help="of cells and nuclei: these only (default: all)")
    parser.add_argument("--epochs", type=int, help="of digits (default: 5) and photos (3)")
    parser.add_argument("--root", type=Path, help="folder of the data; of cells and nuclei")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "digits":
        digits(arguments.seeds, arguments.epochs or 5)
    elif arguments.what == "photos":
        photos(arguments.seeds, arguments.epochs or 3)
    elif arguments.what in study_scenes.STUDIES:
        if arguments.root is None:
            parser.error(f"{arguments.what} needs --root, the folder of the data")
        scenes = study_scenes.STUDIES[arguments.what]
        if unknown := set(arguments.variants or ()) - set(scenes.variants):
            parser.error(f"{arguments.what} has no variants {sorted(unknown)}; it has {list(scenes.variants)}")
        study_scenes.study(scenes, arguments.root, arguments.seeds, arguments.variants)
    study_report.write(RESULTS)
    study_scenes.write()


if __name__ == "__main__":
    main()
