"""Load an export in its own runtime in a fresh process, and compare it with eager."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..timing import Time
from . import runtimes


class VerificationError(Exception):
    """The export doesn't compute what the network does."""


Outputs = tuple[Tensor, ...]  # of a network, for one batch
Objects = list[dict[str, Tensor]]  # in each image of a batch


@dataclass(frozen=True)
class Finder:
    """The file beside an exported detector that finds objects in its outputs, and how it is called."""

    file: Path
    names: tuple[str, ...]  # of the outputs
    settings: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The measurements of the fresh process.

    The last entry of outputs and objects is for the first input in the memory layout of decoded pictures,
    [N, H, W, C].
    """

    outputs: list[Outputs]
    objects: list[Objects]  # empty without a finder
    times: list[Time]  # for a batch of the first input, per file
    first_s: float  # from the start of loading to the first result


def run(
    files: list[tuple[str, Path]],
    inputs: list[Tensor],
    *,
    library: bool,
    threads: int,
    rounds: int,
    limit_minutes: float = 30.0,
    torchvision: bool = False,
    finder: Finder | None = None,
) -> Result:
    """Run the first file in the runtime of its target and time all files, in a process with its own caches.

    Args:
        files: Each with its target.
        inputs: Images [N, C, H, W] of each shape.
        library: Import ``dcn_ops`` before.
        threads: Of the runtime.
        rounds: Calls that are timed.
        limit_minutes: For all of it.
        torchvision: Import torchvision before.
        finder: Call it with the outputs.

    Raises:
        VerificationError: If the process fails, with the end of its output, or takes longer than the limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        np.savez(here / "inputs.npz", **{str(i): images.numpy() for i, images in enumerate(inputs)})  # type: ignore[arg-type]
        request = {
            "files": [(target, str(file.resolve())) for target, file in files],
            "library": library,
            "torchvision": torchvision,
            "finder": finder and vars(finder) | {"file": str(finder.file.resolve())},
            "threads": threads,
            "rounds": rounds,
            **{name: str(here / name) for name in ("inputs.npz", "outputs.npz", "times.json")},
        }
        request |= {
            name.partition(".")[0]: request.pop(name) for name in ("inputs.npz", "outputs.npz", "times.json")
        }
        (here / "request.json").write_text(json.dumps(request))
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": str(here / "caches"),
            "OMP_NUM_THREADS": str(threads),
        }
        # -P: the runtime must not import modules from the script's folder, whose names are common.
        command = [sys.executable, "-P", "-W", "ignore", runtimes.__file__, str(here / "request.json")]
        limit = 60 * limit_minutes
        try:
            done = subprocess.run(
                command, env=environment, cwd=here, capture_output=True, text=True, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise VerificationError(
                f"the runtime of {files[0][0]} was stopped: it had not loaded, run and timed its file within "
                f"{limit_minutes:g} minutes; allow more with limit_minutes=..."
            ) from error
        if done.returncode != 0:
            *before, last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise VerificationError("\n".join((f"a fresh process can't run it: {last}", *before[-5:])))
        times = json.loads((here / "times.json").read_text())
        with np.load(here / "outputs.npz") as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    runs = range(len(inputs) + 1)
    outputs = [_outputs_of(found, run) for run in runs]
    objects = [_objects_of(found, run) for run in runs] if finder else []
    measured = [Time(ms, tuple(q)) for ms, q in zip(times["ms"], times["quartiles"], strict=True)]
    return Result(outputs, objects, measured, times["first_s"])


def _outputs_of(found: dict[str, Tensor], run: int) -> Outputs:
    return tuple(found[f"{run}/{i}"] for i in range(sum(name.startswith(f"{run}/") for name in found)))


def _objects_of(found: dict[str, Tensor], run: int) -> Objects:
    """Return the objects of each image of a run, from the entries "objects/run/image/name"."""
    images: dict[int, dict[str, Tensor]] = {}
    for key, value in found.items():
        kind, *place = key.split("/")
        if kind == "objects" and place[0] == str(run):
            images.setdefault(int(place[1]), {})[place[2]] = value
    return [images[i] for i in range(len(images))]


@dataclass(frozen=True)
class Agreement:
    """The difference of outputs from eager's."""

    error: float  # largest absolute difference
    relative: float  # the same relative to the largest score; of objects see ``answers.Objects``
    same: float  # share of images, pixels or objects with the same answer
    what: str = "images keep their class"
    unit: str = "of the largest score"
    count: int | None = None  # of objects

    def check(self, tolerance: float) -> None:
        """Raise VerificationError if outputs differ by more than ``tolerance`` times the largest score."""
        if not self.relative <= tolerance:  # NaN is wrong
            raise VerificationError(
                f"outputs differ from eager's by {self.error:.2g}, {self.relative:.1e} {self.unit}; "
                f"{tolerance:.0e} is allowed; {100 * self.same:.0f} % of the {self.what}; "
                "allow more with tolerance=..."
            )


def agreement(outputs: list[Tensor], expected: list[Tensor], what: str = "images keep their class") -> Agreement:
    """Compare scores [N, classes, ...] with eager's.

    Raises:
        VerificationError: If the shapes differ.
    """
    for output, target in zip(outputs, expected, strict=True):
        if output.shape != target.shape:
            raise VerificationError(f"expected scores of shape {list(target.shape)}, got {list(output.shape)}")
    error = max(float((o - e).abs().max()) for o, e in zip(outputs, expected, strict=True))
    largest = max(float(e.abs().max()) for e in expected)
    same = torch.cat([(o.argmax(1) == e.argmax(1)).flatten() for o, e in zip(outputs, expected, strict=True)])
    return Agreement(error, error / largest, float(same.float().mean()), what)
