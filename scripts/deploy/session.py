"""Shared by all targets of a run: the network, its images, and eager's answers."""

import copy
import json
import logging
import shutil
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo

from .. import timing
from ..config.schema import Export
from . import answers, detections, guard, photos, report, source, targets, training_data, verify
from .progress import stage
from .report import Row
from .workplace import publish, workplace

_log = logging.getLogger(__name__)
# Relative to the largest score: the effect of rounding in a deep network.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-1}
INT8_TOLERANCE = 0.3  # finds wrong results; the report has the loss of accuracy
_SIZES = {"none": "-", "batch": "batch", "size": "batch, height, width"}


class Session:
    """One network to be exported to several targets.

    Raises:
        ValueError: If the dtype is unknown, the network doesn't take the images, its scores are not finite, or it
            finds no object.
    """

    def __init__(self, config: Export) -> None:
        if config.dtype not in TOLERANCE:
            raise ValueError(f"expected dtype to be one of {', '.join(TOLERANCE)}, got {config.dtype!r}")
        self.config = config
        self.source = source.load(config.checkpoint, config.model, config.size)
        if config.threads is not None:  # Inductor writes the number of threads into its code
            torch.set_num_threads(config.threads)
        self.threads = torch.get_num_threads()
        self.photos = self._photos()
        self.inputs = self._inputs()
        self.answers = answers.of(self.source.model, self.source.head, self.inputs, self._tolerance())
        self.network = self._prepared(self.source.name, self.source.model)
        plain = source.plain(self.source.model) if config.plain else None
        self.plain = None if plain is None else self._prepared("the plain network", plain)

    def _photos(self) -> photos.Photos:
        config, head = self.config, self.source.head
        found = None
        if head is not None and config.images is None and config.checkpoint is not None:
            found = training_data.read(Path(config.checkpoint), config.max_images)
        return found or photos.read(config.images, config.max_images, classes=head is None)

    def title(self) -> str:
        """Return a description of the measurement."""
        config, size = self.config, "x".join(map(str, self.source.size))
        kind = config.dtype + (", int8" if config.int8 else "")
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.source.name}, {kind}, batch {config.batch} of {size}, {threads}"

    def _inputs(self) -> list[Tensor]:
        """Return the batch that is timed, then every image, then a batch of another shape if it is dynamic."""
        batch, (channels, height, width) = self.config.batch, self.source.size
        count, model = max(8, len(self.photos.images)), self.source.model

        def draw(n: int, h: int, w: int) -> Tensor:
            return photos.batch(self.photos.images, n, (channels, h, w), model, square=self.source.head is not None)

        if self.config.dynamic == "none":
            whole = draw(-(-count // batch) * batch, height, width)
            return [whole[:batch], *whole.split(batch)]
        more = 32 if self.config.dynamic == "size" else 0
        return [draw(batch, height, width), draw(count, height, width), draw(3, height + more, width + 2 * more)]

    def _prepared(self, name: str, model: nn.Module) -> nn.Module:
        """Return a copy that is fused, cast and laid out; the name is for the log."""
        model = copy.deepcopy(model).requires_grad_(False)
        if self.config.fuse:
            fused = zoo.fuse_batch_norm_(model, self.inputs[0])
            _log.info("%s: %d BatchNorms fused into the convolutions before them", name, len(fused))
        model = self.answers.exported(model).requires_grad_(False)
        if self.config.dtype != "float32":
            model = source.Ported(model, getattr(torch, self.config.dtype)).eval()
        return model.to(memory_format=torch.channels_last) if self.config.channels_last else model

    def _networks(self) -> list[nn.Module]:
        """Return the network and, for comparison, the plain one."""
        return [self.network] if self.plain is None else [self.network, self.plain]

    def eager(self) -> Row:
        """Time the unexported network, also in its own process: targets should be faster than this."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{i}.eager" for i, _ in enumerate(self._networks())]
            for file, network in zip(files, self._networks(), strict=True):
                torch.save(network, file.with_suffix(".module"))
            with stage("eager: timing in a fresh process"):
                return self._verified(Row("eager", dynamic=_SIZES["size"], library=True), files)

    def against_eager(self, name: str, file: Path) -> float:
        """Return the time of a file for torch relative to eager's, timed alternately in one process."""
        with tempfile.TemporaryDirectory() as folder:
            eager = Path(folder) / "network.eager"
            torch.save(self.network, eager.with_suffix(".module"))
            files = [(name, file), ("eager", eager)]
            rounds = self.config.rounds
            limit = self.config.limit_minutes
            times = verify.run(
                files, self.inputs[:1], library=True, threads=self.threads, rounds=rounds, limit_minutes=limit
            ).times
        return times[0].median / times[1].median

    def export(self, name: str, folder: Path, eager: Row, about: dict[str, Any]) -> Row:
        """Write, verify and name the file of one target, and a report next to it; on failure write neither.

        Args:
            name: The target.
            folder: Receives FILE and FILE.json.
            eager: The row of eager, also reported.
            about: Further contents of the report.
        """
        with workplace(folder) as places:
            start = time.perf_counter()
            with stage(f"{name}: writing"):
                files = self.write(name, places)
            export_s = time.perf_counter() - start
            with stage(f"{name}: verifying in a fresh process"):
                row = self.verified(name, files)
            files[0].with_suffix(".module").unlink(missing_ok=True)
            row.export_s, row.bytes = export_s, sum(path.stat().st_size for path in places[0].iterdir())
            row.file = str(folder / files[0].name)
            report.save(
                [eager, row],
                {**about, "metadata": {k: json.loads(v) for k, v in self.facts().items()}},
                places[0] / f"{files[0].name}.json",
            )
            publish(places[0], files[0].name, folder)
        return row

    def write(self, name: str, places: list[Path]) -> list[Path]:
        """Write the file of one target into the first folder, and the plain network's into the second.

        Raises:
            ValueError: If the target doesn't support the job.
            ImportError: If a package is missing.
        """
        self.check(name)
        target = targets.TARGETS[name]
        files = self.files(name, places)
        if self.answers.settings is not None:
            shutil.copy(detections.__file__, files[0].parent)
        for file, network in zip(files, self._networks(), strict=True):
            target.write(self._job(network), file)
            if name == "compile":  # its caches belong to a network that the process builds itself
                torch.save(network, file.with_suffix(".module"))
        return files

    def check(self, name: str) -> None:
        """Raise ValueError if the target doesn't support the job, ImportError if it needs a missing package."""
        config = self.config
        asked = {
            field.name: getattr(config, field.name) for field in fields(guard.Wish) if hasattr(config, field.name)
        }
        targets.check(
            guard.Wish(**asked | {"target": name}, kind=self.answers.kind, layers=guard.layers(self.network))
        )

    def files(self, name: str, places: list[Path]) -> list[Path]:
        """Return the paths of the files that ``write`` writes into these folders."""
        kinds = (self.config.dtype if self.config.dtype != "float32" else "", "int8" if self.config.int8 else "")
        stem = "-".join(filter(None, (self.source.name, *kinds)))
        return [place / (stem + targets.TARGETS[name].suffix) for place in places[: len(self._networks())]]

    def verified(self, name: str, files: list[Path]) -> Row:
        """Run the files of a target, compare the network's scores with eager, time both, and return the row.

        Raises:
            VerificationError: If files don't run, or compute something else.
        """
        target = targets.TARGETS[name]
        library = target.library == "always" or (target.library == "whole" and not self.config.decompose)
        row = Row(name, dynamic=_SIZES[self.config.dynamic], library=library)
        row.torchvision = target.torchvision and self.answers.kind == "two-stage"
        return self._verified(row, files)

    def _job(self, network: nn.Module) -> targets.Job:
        return targets.Job(
            model=network,
            images=self.inputs[0],
            inputs=self.inputs,
            calibration=self.inputs[1] if self.config.dynamic != "none" else torch.cat(self.inputs[1:]),
            dynamic=self.config.dynamic,
            decompose=self.config.decompose,
            sampling=self.config.sampling,
            opset=self.config.opset,
            int8=self.config.int8,
            facts=self.facts(),
            names=self.answers.names,
            two_stage=self.answers.kind == "two-stage",
        )

    def facts(self) -> dict[str, str]:
        """Return the metadata of a file: JSON by name."""
        square = self.source.head is not None
        found = photos.facts(self.source.size, self.source.model, self.answers.classes, square=square)
        if self.answers.settings is not None:
            found |= {"outputs": json.dumps(self.answers.names), "detections": json.dumps(self.answers.settings)}
        return found

    def _verified(self, row: Row, files: list[Path]) -> Row:
        """Run the files, compare the network's scores with eager, and fill in the row."""
        rounds = self.config.rounds
        named = [(row.target, file) for file in files]
        result = verify.run(
            named,
            self.inputs,
            library=row.library,
            threads=self.threads,
            rounds=rounds,
            limit_minutes=self.config.limit_minutes,
            torchvision=row.torchvision,
            finder=self._finder(row, files[0]),
        )
        agreement = self.answers.compare(result)
        row.error, row.relative, row.top1 = agreement.error, agreement.relative, agreement.same
        row.same, row.objects = self.answers.same, agreement.count
        row.accuracy, row.labelled = self._accuracy([out[0] for out in result.outputs[:-1]])
        row.ms, row.first_s = result.times[0].median, result.first_s
        row.plain_ms = result.times[1].median if len(result.times) > 1 else None
        timing.warn_if_scattered({row.target: result.times[0]})
        agreement.check(self._tolerance())
        return row

    def _finder(self, row: Row, file: Path) -> verify.Finder | None:
        if self.answers.settings is None:
            return None
        script = Path(detections.__file__)
        beside = script if row.target == "eager" else file.parent / script.name
        return verify.Finder(beside, self.answers.names, self.answers.settings)

    def _tolerance(self) -> float:
        if self.config.tolerance is not None:
            return self.config.tolerance
        return INT8_TOLERANCE if self.config.int8 else TOLERANCE[self.config.dtype]

    def _accuracy(self, outputs: list[Tensor]) -> tuple[tuple[float, float] | None, int]:
        labels = photos.labels_of(self.photos, self.source.model, self.answers.classes)
        if labels is None or not isinstance(self.answers, answers.Scores):
            return None, 0

        def share(scores: list[Tensor]) -> float:
            whole = scores[1] if self.config.dynamic != "none" else torch.cat(scores[1:])
            return float((whole.argmax(1)[: len(labels)] == torch.tensor(labels)).float().mean())

        return (share(self.answers.scores[:-1]), share(outputs)), len(labels)
