"""Exported files with images whose layout differs from the example of the export."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from zoo.scripts.deploy import targets, verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def awkward(example: Tensor) -> dict[str, Tensor]:
    """Return images [N, C, H, W] in common layouts; code for contiguous float32 would misread most of them."""
    n, c, h, w = example.shape
    return {
        "decoded pictures": example.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "a crop of columns": torch.randn(n, c, h, w + 8)[..., 3 : w + 3],
        "a crop of rows": torch.randn(n, c, h + 8, w)[:, :, 3 : h + 3],
        "colours without alpha": torch.randn(n, c + 1, h, w)[:, :c],
        "every other image": torch.randn(2 * n, c, h, w)[::2],
        "one image repeated": torch.randn(1, c, h, w).expand(n, -1, -1, -1),
        "float64": example.double(),
        "float16": example.half(),
        "one image": example[:1],
        "more images": torch.randn(n + 1, c, h, w),
        "larger": torch.randn(n, c, h + 8, w + 8),
        "smaller": torch.randn(n, c, h - 8, w),
        "grey": example[:, :1],
        "no batch": example[0],
        "bytes": torch.zeros(n, c, h, w, dtype=torch.uint8),
    }


REFUSED = {
    "none": {"one image", "more images", "larger", "smaller", "grey", "no batch", "bytes"},
    "batch": {"larger", "smaller", "grey", "no batch", "bytes"},
    "size": {"grey", "no batch", "bytes"},
}


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", targets.DYNAMIC)
def test_an_aoti_package_scores_rightly_or_refuses_whatever_images_it_gets(dynamic: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    example = torch.randn(2, 3, 24, 20)
    job = targets.Job(
        model=model.eval().requires_grad_(False),
        images=example,
        inputs=[example],
        calibration=example,
        dynamic=dynamic,
        decompose=False,
        sampling="grid_sample",
        opset=20,
        int8=False,
        facts={"mean": "[0.5]"},
    )
    targets.TARGETS["aoti"].write(job, tmp_path / "model.pt2")
    package = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    assert package.get_metadata()["mean"] == "[0.5]"
    refused = set()
    for name, given in awkward(example).items():
        before = given.clone()
        try:
            scores = package(given)
        except RuntimeError as error:
            refused.add(name if "expected images of" in str(error) else str(error))
        else:
            torch.testing.assert_close(scores, model(given.float()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(given, before, rtol=0, atol=0)
    assert refused == REFUSED[dynamic]


@torch.no_grad()
def test_scores_of_pictures_as_they_are_decoded_are_verified(tmp_path: Path) -> None:
    class Trusting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.as_strided(images.shape, (3 * 8 * 6, 8 * 6, 6, 1)).flatten(2).mean(2)

    file, example = tmp_path / "model.pt", torch.randn(2, 3, 8, 6)
    torch.jit.save(torch.jit.trace(Trusting(), example), file)
    result = verify.run([("torchscript", file)], [example], library=False, threads=1, rounds=1)
    expected = [example.mean((2, 3))]
    assert verify.agreement([out[0] for out in result.outputs[:-1]], expected).relative < 1e-5
    assert verify.agreement([result.outputs[-1][0]], expected).relative > 1e-2
