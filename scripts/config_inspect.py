"""The typed schema of ``conf/visualize.yaml`` and ``conf/evaluate.yaml``."""

import copy
import dataclasses
import functools
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from .config import Data

# As Data; what the network was trained with stands in for a size or a number of channels that is not given.
_OPEN = {"img_size", "in_chans"}
_TYPES = {f.name: f.type | None if f.name in _OPEN else f.type for f in dataclasses.fields(Data)}  # type: ignore[operator]
InspectedData = dataclasses.make_dataclass(
    "InspectedData", [(f.name, _TYPES[f.name], copy.copy(f)) for f in dataclasses.fields(Data)]
)


@dataclass
class Visualize:
    """``conf/visualize.yaml``."""

    checkpoint: str | None = None  # of dcn-train
    name: str | None = None  # instead: a name of timm, such as resnet50 or resnet50_dcn
    pretrained: bool = False  # of name
    before: str | None = None  # a checkpoint to compare receptive fields with; by default the network newly drawn
    data: InspectedData = MISSING  # type: ignore[valid-type]
    images: int = 4  # columns of the sampling picture
    points: list[list[float]] = field(
        default_factory=lambda: [[0.5, 0.5], [0.3, 0.3], [0.3, 0.7]]
    )  # (y, x) in [0, 1]
    layer: str | None = None  # whose outputs are followed; by default the last whose map has 4 rows or more
    levels: int = 3  # how many layers a sample is followed through: 9^3 points for 3 x 3 filters
    field_images: int = 64  # that receptive fields and offsets are averaged over
    seed: int = 0
    device: str = "auto"


@dataclass
class Evaluate:
    """``conf/evaluate.yaml``."""

    checkpoint: str = MISSING  # of dcn-train
    against: list[str] = field(default_factory=list)  # further checkpoints, on the same data and interleaved clock
    data: InspectedData = MISSING  # type: ignore[valid-type]
    corruptions: list[str] = field(default_factory=lambda: ["all"])  # names, "all", or [] for none
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    corruption_batches: int | None = 10  # of the evaluation split, for each corruption; null: all
    rounds: int = 15  # of the throughput measurement
    compile: bool = False
    channels_last: bool = True
    seed: int = 0
    device: str = "auto"


@functools.cache  # Hydra warns of a second time
def register() -> None:
    """Put the schemas where ``conf/`` finds them."""
    store = ConfigStore.instance()
    store.store(name="visualize_schema", node=Visualize)
    store.store(name="evaluate_schema", node=Evaluate)
