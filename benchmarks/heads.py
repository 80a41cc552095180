"""Which export holds for which detector and segmenter: python benchmarks/heads.py --boxes BCCD --instances NUCLEI.

Every head is trained for a few steps on real images, on a small backbone with deformable layers, so that it finds
something. dcn-export then writes and verifies its files. Each result is kept at once in
benchmarks/results/heads.json: what is there is not run again, unless it failed and ``--again`` is given. The
command ends with the table of docs/deployment.md.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy.run import run as export
from zoo.scripts.storage import markdown
from zoo.scripts.storage.provenance import provenance
from zoo.scripts.training.run import run as train

_ROOT = Path(__file__).parents[1]
_JSON, _PAGE = _ROOT / "benchmarks/results/heads.json", _ROOT / "docs/deployment.md"
_COMMAND = "python benchmarks/heads.py --boxes BCCD --instances NUCLEI"
ONE_STAGE, TWO_STAGE = ("fcos", "retinanet"), ("faster_rcnn", "mask_rcnn")
SEGMENTERS = ("unet", "smp_fpn", "deeplabv3plus", "upernet")
HEADS = (*SEGMENTERS, *ONE_STAGE, *TWO_STAGE)
TARGETS = ("onnx", "openvino", "torchscript", "aoti")
_NAMES = {
    "unet": "Unet", "smp_fpn": "FPN", "deeplabv3plus": "DeepLabV3+", "upernet": "UPerNet", "fcos": "FCOS",
    "retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN",
}  # fmt: skip
_SIZES = {"size": "any size", "batch": "any batch", "none": "one shape"}
_QUICK = [
    "model.kwargs.channels=[16,16,32,32]", "dcn.stages=[4]", "head.channels=64", "data.img_size=128",
    "data.batch_size=8", "data.workers=0", "data.max_batches=8", "optim.epochs=2", "optim.warmup_epochs=0",
    "trackers=[]", "device=cpu", "report=false", "variants=[dcn]",
]  # fmt: skip


def main() -> None:
    """Train, export and write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=Path, required=True, help="a folder of VOC: BCCD")
    parser.add_argument("--instances", type=Path, required=True, help="images and label maps: nuclei")
    parser.add_argument("--work", type=Path, default=Path("runs/heads"), help="of checkpoints and exports")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--again", action="store_true", help="also what failed before")
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(_JSON.read_text()) if _JSON.is_file() else {}
    jobs = [(head, dynamic) for dynamic in _SIZES for head in arguments.heads if dynamic in sizes_of(head)]
    for head, dynamic in jobs:
        if missing := [t for t in arguments.targets if is_missing(head, t, dynamic, found, arguments.again)]:
            weights = checkpoint_of(head, arguments)
            for row in exported(weights, missing, dynamic, arguments.work / "exports" / head):
                found[f"{head} {row['target']}"] = row
            _JSON.write_text(json.dumps(found, indent=1) + "\n")
    markdown.replace_block(_PAGE, "heads", table(found))


def checkpoint_of(head: str, arguments: argparse.Namespace) -> Path:
    """Return the checkpoint of a head; train it if there is none."""
    folder = arguments.work / head
    weights: Path = folder / "dcn" / "last.safetensors"
    if weights.is_file():
        return weights
    if head in SEGMENTERS:
        root = masks_of(arguments.instances, arguments.work / "masks")
        data = ["task=segmentation", "data=masks", f"data.root={root}", "data.classes=[ground,nucleus]"]
    elif head == "mask_rcnn":
        data = ["task=detection", "data=instances", f"data.root={arguments.instances}"]
    else:
        data = ["task=detection", "data=voc", f"data.root={arguments.boxes}"]
    partial = folder.with_suffix(".partial")  # of an interrupted training
    shutil.rmtree(partial, ignore_errors=True)
    train(compose_train(*data, f"head={head}", *_QUICK), partial)
    partial.rename(folder)
    return weights


def masks_of(instances: Path, folder: Path) -> Path:
    """Write masks of two classes, ground and object, from label maps of instances."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for name in ("images", "index.csv"):
        if not (folder / name).exists():
            (folder / name).symlink_to((instances / name).resolve())
    for path in (instances / "instances").glob("*.png"):
        with Image.open(path) as image:
            numbers = np.asarray(image)
        Image.fromarray((numbers > 0).astype(np.uint8)).save(folder / "masks" / path.name)
    return folder.resolve()


def sizes_of(head: str) -> tuple[str, ...]:
    """Return the kinds of dynamic sizes to try, the most dynamic first."""
    return ("none",) if head in TWO_STAGE else ("size", "batch")


def is_missing(head: str, target: str, dynamic: str, found: dict[str, Any], again: bool) -> bool:
    """Tell whether a target is to be run with these sizes: if it is new, or failed with more dynamic ones."""
    if target == "aoti" and dynamic == "size":  # it compiles for many minutes
        return False
    known = found.get(f"{head} {target}")
    kinds = list(_SIZES)
    return known is None or (
        known["reason"] is not None and (again or kinds.index(known["dynamic"]) < kinds.index(dynamic))
    )


def exported(weights: Path, names: list[str], dynamic: str, folder: Path) -> list[dict[str, Any]]:
    """Run dcn-export for some targets, and return their rows."""
    config = Export(
        checkpoint=str(weights), target=names, dynamic=dynamic, folder=str(folder), plain=False, rounds=1,
        max_images=16, threads=1,
    )  # fmt: skip
    about = {**provenance(""), "command": _COMMAND}  # the arguments are folders of this machine
    return [
        {**dataclasses.asdict(row), "dynamic": dynamic, "file": None, "about": about} for row in export(config)[1:]
    ]


def table(found: dict[str, Any]) -> str:
    """Return the table of head x target, and where it comes from: the commits and versions of all its rows."""
    rows = [
        [_NAMES[head], *(cell(found.get(f"{head} {target}")) for target in TARGETS)]
        for head in HEADS
        if any(f"{head} {target}" in found for target in TARGETS)
    ]
    abouts = [row["about"] for row in found.values()]
    commits = list(dict.fromkeys(about["commit"] for about in abouts))
    versions = [", ".join(f"{name} {version}" for name, version in about["versions"].items()) for about in abouts]
    source = "; ".join(dict.fromkeys(versions))
    word = "commit" if len(commits) == 1 else "commits"
    return f"{markdown.table(('head', *TARGETS), rows)}\n\n(`{_COMMAND}`, {word} {', '.join(commits)}; {source}.)"


def cell(row: dict[str, Any] | None) -> str:
    """Return the largest difference, the objects and the sizes; or why there is no file."""
    if row is None:
        return "not run"
    if row["reason"] is not None:
        return "no: " + row["reason"].split(": ", 1)[-1][:100]
    objects = "" if row["objects"] is None else f", {row['objects']} objects"
    return f"{row['relative']:.0e}{objects}, {_SIZES[row['dynamic']]}"


if __name__ == "__main__":
    main()
