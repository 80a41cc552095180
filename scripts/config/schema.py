"""The typed schema of ``conf/``: one dataclass for each command, one for each config group."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from zoo import DCNConfig

# The same fields as zoo.DCNConfig, except the function; mutable, so that Hydra can override them.
DCN = dataclasses.make_dataclass(
    "DCN",
    [(f.name, f.type, field(default=f.default)) for f in dataclasses.fields(DCNConfig) if f.name != "where"],
)


@dataclass
class Model:
    """Arguments of ``timm.create_model``; classes and channels come from the data."""

    name: str = MISSING  # of timm, such as resnet50
    pretrained: bool = False  # start with timm's weights, which are downloaded
    checkpoint_path: str = ""  # weights of the plain network, loaded before the conversion
    kwargs: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model


@dataclass
class Task:
    """What the network is trained for: classification, detection or segmentation."""

    name: str = "classification"  # classification, detection or segmentation; choose it by task=...


@dataclass
class Head:
    """The detector or segmenter around the timm network."""

    name: str | None = None  # None: timm's own classifier
    channels: int = 256  # width of the pyramid and the head
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the library's class, such as detections_per_img


@dataclass
class Data:
    """The data set, read by ``timm.data.create_dataset``, a distorted MNIST or scenes, and the augmentations."""

    name: str = MISSING  # as in timm.data.create_dataset, empty for folders; or as in the presets
    root: str | None = None  # the folder
    train_split: str = "train"  # name of the split that trains
    eval_split: str = "validation"  # name of the split that evaluates
    img_size: int = 224  # height and width of the network's images
    in_chans: int = 3  # channels of the images
    num_classes: int | None = None  # None: the number of classes in the data set
    classes: list[str] | None = None  # of scenes (voc, coco, ...), in order; None: those of the annotations
    colors: list[str] | None = None  # of masks in colour: "#rrggbb" of each class; None: masks of class numbers
    download: bool = False  # for torch/ data sets
    kwargs: dict[str, Any] = field(default_factory=dict)  # for timm.data.create_dataset
    batch_size: int = 64  # images of an optimizer step, over all processes and accumulated parts
    workers: int = 4  # processes that read images
    # Augmentations of torchvision.transforms.v2.
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image that a training crop keeps
    hflip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.4  # strength
    auto_augment: str | None = None  # randaugment, trivialaugment, autoaugment, augmix, or rand-m9-mstd0.5-inc1
    erasing: float = 0.0  # probability of a random rectangle
    rotation: float = 45.0  # of the distorted and scattered digits: degrees either way
    scale: tuple[float, float] = (0.7, 1.2)  # of the distorted and scattered digits: range
    eval_copies: int = 5  # of the distorted digits: draws of each evaluation image
    shear: float = 0.0  # of the scattered digits: degrees either way
    objects: tuple[int, int] = (3, 6)  # of the scattered digits: range of the number of digits in an image
    images: int = 1600  # of the scattered digits: training images of an epoch
    max_batches: int | None = None  # of each split, for a quick test


@dataclass
class Optim:
    """The recipe: optimizer, schedule and regularisation, with timm's names."""

    opt: str = "adamw"  # an optimizer of timm
    lr: float = MISSING  # highest learning rate of the schedule
    weight_decay: float = 0.0  # of weights, not of biases, norms and predictors
    layer_decay: float | None = None  # each layer's learning rate is this times the next layer's, such as 0.75
    sched: str = "cosine"  # a schedule of timm that needs no metric
    epochs: int = MISSING  # passes over the training split
    warmup_epochs: int = 0  # in which the learning rate rises from 0
    min_lr: float = 0.0  # at the end of the schedule
    label_smoothing: float = 0.0  # 0 to 1
    mixup: float = 0.0  # alpha of the beta distribution, as in cutmix
    cutmix: float = 0.0  # alpha of the beta distribution
    clip_grad: float | None = None  # largest norm of all gradients together
    accumulate: int = 1  # parts into which a process splits its share of the batch
    ema: float | None = None  # decay of the moving average of the weights, which is then evaluated and saved
    freeze: list[str] = field(default_factory=list)  # globs over names of modules and parameters that don't learn
    # The offset predictors. For a bound see dcn.offset_bound.
    offset_lr_scale: float = 0.1  # their learning rate, relative to the other layers
    offset_warmup_steps: int = 0  # steps before they learn
    offset_l2: float = 0.0  # adds this times the mean squared offset of every layer, in pixels, to the loss


@dataclass
class Train:
    """``conf/train.yaml``."""

    task: Task = MISSING
    head: Head = MISSING
    model: Model = MISSING
    dcn: DCN = MISSING  # type: ignore[valid-type]
    data: Data = MISSING
    optim: Optim = MISSING
    variants: tuple[str, ...] = ("plain", "dcn")  # trained one after the other, with the same seed and schedule
    seed: int = 0  # of weights, order and augmentations
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: a GPU if there is one
    precision: str | None = None  # no, bf16 or fp16; None: as accelerate launch sets it, else no
    compile: bool = False  # train with torch.compile
    channels_last: bool = True  # memory format of images and weights
    grad_checkpointing: bool = False  # less memory, more time
    sync_bn: bool = False  # batch statistics over all processes
    dry_run: bool = False  # show the data, don't train
    resume: str | None = None  # "auto", or the folder of a run
    checkpoint_minutes: float = 10.0  # between two training states within an epoch; each epoch ends with one
    checkpoint_every: int | None = None  # the same in optimizer steps
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # of accelerate, such as wandb and mlflow
    report: bool = True  # latency, FLOPs and the picture at the end
    push_to: str | None = None  # "user/repo": push the deformable classifier to the Hugging Face hub at the end


_PROVIDERS = ("conv2d", "copy", "eager", "compiled", "composition", "torchvision", "onnxruntime", "openvino")


@dataclass
class Bench:
    """``conf/bench.yaml``."""

    suite: str = "quick"  # op, dense, grouped, half, size, threads, overhead, quick, gpu, models, deploy
    case: str = "*"  # a shell pattern of the suite's cases
    providers: list[str] = field(default_factory=lambda: [*_PROVIDERS])  # the implementations that are measured
    modes: list[str] = field(default_factory=lambda: ["forward", "training"])  # forward, training
    models: list[str] = field(default_factory=list)  # for suite=models and deploy; empty: all
    batch: int = 8  # for suite=models and deploy
    autocast: bool = False  # for suite=models, to bfloat16
    exports: str | None = None  # for suite=deploy: a folder that keeps the exports; exports in it are only timed
    rounds: int = 9  # calls of each, alternately; the median counts
    threads: list[int] = field(default_factory=lambda: [2])  # of torch; one table for each
    offset_sigma: float = 1.0  # standard deviation of the offsets, in pixels
    memory: bool = False  # also measure peak memory, in one process per provider
    device: str = "cpu"  # cpu or cuda
    json: str | None = None  # default: benchmarks/results/<device>-<suite>.json
    plot: str | None = None  # draw this JSON file into docs/img, measure nothing
    markdown: str | None = None  # with plot: write its tables into this file, between marks named after it
    strict: bool = False  # exit 1 if a bound is missed


@dataclass
class Export:
    """``conf/deploy/export.yaml``."""

    checkpoint: str | None = None  # of dcn-train
    model: str | None = None  # instead: a folder of zoo.save, or a timm name
    target: Any = "all"  # a target, or a list of targets
    folder: str = "exports"  # where the files go
    dynamic: str = "batch"  # "none", "batch", or "size": batch, height and width
    dtype: str = "float32"  # float32, bfloat16 or float16
    int8: bool = False  # for the ordinary convolutions; deformable ones and their predictors stay float
    decompose: bool = False  # for torch-export and torchscript: no dcn_ops operator; other files have none anyway
    sampling: str = "grid_sample"  # with decompose=true; "gather" for runtimes whose GridSample is wrong or missing
    opset: int = 20  # for onnx
    fuse: bool = True  # fold BatchNorms into the convolutions before them
    channels_last: bool = True  # memory format of the exported network's images
    size: Any = None  # height and width in a list, or one number for both; default: the network's own size
    batch: int = 1  # batch size that is timed
    images: str | None = None  # a folder; default: a detector's or segmenter's own data, or scikit-image's photos
    max_images: int = 64  # of the folder
    plain: bool = True  # also export and time the plain network
    rounds: int = 20  # calls that are timed
    threads: int | None = None  # of the runtime; null: its default
    tolerance: float | None = None  # largest error relative to the largest score; default: by dtype
    limit_minutes: float = 30.0  # limit for the runtime of a target to load, run and time its file
    markdown: str | None = None  # write the table into this file, between the marks of ...
    block: str = "targets"  # the name between the marks in the Markdown file


@dataclass
class Migrate:
    """``conf/deploy/migrate.yaml``."""

    checkpoint: str | None = None  # a file of mmdetection, mmsegmentation, detectron2, torchvision or YOLACT++
    folder: str | None = None  # for zoo.load; neck and heads are in its rest.safetensors
    overwrite: bool = False  # replace a model that is in the folder
    caffe: bool | None = None  # strides in the 1x1 convolutions, BGR images; null: as the checkpoint suggests
    modulated: bool | None = None  # whether layers have masks, if their shapes allow both
    arguments: dict[str, Any] = field(default_factory=dict)  # of timm.create_model, such as output_stride


@dataclass
class Share:
    """``conf/share.yaml``."""

    checkpoint: str | None = None  # of dcn-train, a deformable classifier
    folder: str | None = None  # for zoo.load
    overwrite: bool = False  # replace a model that is in the folder
    push_to: str | None = None  # "user/repo" of the Hugging Face hub
    license: str | None = None  # of the weights, by the hub's name, such as apache-2.0
    private: bool | None = None  # of a new repository; null: the account's default


# As Data; a missing size or number of channels is that of the network's training.
_OPEN = {"img_size", "in_chans"}
_TYPES = {f.name: f.type | None if f.name in _OPEN else f.type for f in dataclasses.fields(Data)}  # type: ignore[operator]
InspectedData = dataclasses.make_dataclass(
    "InspectedData", [(f.name, _TYPES[f.name], copy.copy(f)) for f in dataclasses.fields(Data)]
)


@dataclass
class Visualize:
    """``conf/visualize.yaml``."""

    checkpoint: str | None = None  # of dcn-train
    name: str | None = None  # instead: a timm name, such as resnet50 or resnet50_dcn
    pretrained: bool = False  # for name
    before: str | None = None  # a checkpoint to compare receptive fields with; default: new random weights
    data: InspectedData = MISSING  # type: ignore[valid-type]
    images: int = 4  # columns of the sampling picture
    points: list[list[float]] | None = None  # outputs to follow, (y, x) in [0, 1]; default: on objects of scenes
    layer: str | None = None  # the layer whose outputs are followed; default: the last whose map has 4 rows or more
    levels: int = 3  # number of layers through which a sample is followed: 9^3 points for 3 x 3 filters
    field_images: int = 64  # number of images over which receptive fields and offsets are averaged
    seed: int = 0  # of the data
    device: str = "auto"  # cpu, cuda, ...; auto: a GPU if there is one


@dataclass
class Predict:
    """``conf/predict.yaml``."""

    checkpoint: str = MISSING  # of dcn-train
    images: str = MISSING  # a folder
    score: float = 0.3  # of a detector's boxes that are written
    batch_size: int = 8  # images that the network reads together
    pictures: bool = True  # also write a picture of each image
    device: str = "auto"  # cpu, cuda, ...; auto: a GPU if there is one


@dataclass
class Evaluate:
    """``conf/evaluate.yaml``."""

    checkpoint: str = MISSING  # of dcn-train
    against: list[str] = field(default_factory=list)  # further checkpoints, on the same data, timed alternately
    data: InspectedData = MISSING  # type: ignore[valid-type]
    corruptions: list[str] = field(default_factory=lambda: ["all"])  # names, "all", or [] for none
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])  # of the corruptions, 1 to 5
    score: float = 0.3  # of a detector's boxes that count for F1 and the confusion
    corruption_batches: int | None = 10  # of the evaluation split, for each corruption; null: all
    rounds: int = 15  # of the throughput measurement
    compile: bool = False  # with torch.compile
    channels_last: bool = True  # memory format of images and weights
    seed: int = 0  # of the data
    device: str = "auto"  # cpu, cuda, ...; auto: a GPU if there is one
