"""How far logits move when a ResNet-50 is converted, against its float64 run: python benchmarks/identity.py."""

import copy

import timm
import torch

from zoo import DCNConfig, inject_


def main() -> None:
    """Print the largest logit, and the largest error of the plain and of the converted network."""
    torch.manual_seed(0)
    # With last BatchNorms at zero the residual branches, and errors in them, would not show.
    model = timm.create_model("resnet50", zero_init_last=False).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        plain = model(images)
        converted = inject_(model, DCNConfig(stages=(2, 3, 4)))(images)
    print(f"largest logit {exact.abs().max():.0f}")
    for name, logits in (("plain", plain), ("converted", converted)):
        print(f"{name}: largest error {(logits - exact).abs().max():.1e}")


if __name__ == "__main__":
    main()
