"""Classify an image with a file that ``dcn-export target=onnx`` wrote; needs onnxruntime, numpy and Pillow alone.

python examples/onnxruntime_classify.py MODEL.onnx IMAGE --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
"""

import argparse
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Print the five best classes, a line each: index and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--mean", type=float, nargs="+", default=[0.485, 0.456, 0.406])
    parser.add_argument("--std", type=float, nargs="+", default=[0.229, 0.224, 0.225])
    arguments = parser.parse_args()

    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    (input,) = session.get_inputs()
    if len(arguments.mean) not in (1, input.shape[1]) or len(arguments.std) not in (1, input.shape[1]):
        sys.exit(f"error: the network has {input.shape[1]} channels: give one --mean and --std, or one for each")
    image = Image.open(arguments.image).convert("L" if input.shape[1] == 1 else "RGB")
    image = image.resize((arguments.size, arguments.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32).reshape(arguments.size, arguments.size, -1) / 255
    pixels = (pixels - np.float32(arguments.mean)) / np.float32(arguments.std)
    (scores,) = session.run(None, {input.name: pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    for index in np.argsort(-scores[0])[:5]:
        print(index, f"{scores[0, index]:.6g}")


if __name__ == "__main__":
    main()
