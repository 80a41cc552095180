"""Classify an image with a file that ``dcn-export target=onnx`` wrote; needs onnxruntime, numpy and Pillow alone.

python examples/onnxruntime_classify.py MODEL.onnx IMAGE --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225

The file says itself what size, mean and std its images have, and often the names of its classes.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main() -> None:
    """Print the five best classes, a line each: index, score, and the name where it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--size", type=int, help="height and width, by default what the file says")
    parser.add_argument("--mean", type=float, nargs="+", help="one number, or one a channel")
    parser.add_argument("--std", type=float, nargs="+", help="one number, or one a channel")
    arguments = parser.parse_args()
    try:
        classify(arguments)
    except Exception as error:  # of the runtime, of the image, or ours: one line says what it is
        sys.exit(f"error: {error}")


def classify(arguments: argparse.Namespace) -> None:
    """Run the network on the image."""
    session = onnxruntime.InferenceSession(arguments.model, providers=["CPUExecutionProvider"])
    facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    (input,) = session.get_inputs()
    channels, *fixed = input.shape[1:]  # height and width are names where they are dynamic
    height, width = [arguments.size] * 2 if arguments.size is not None else facts["input_size"][1:]
    if any(isinstance(size, int) and size != got for size, got in zip(fixed, (height, width), strict=True)):
        raise ValueError(f"the network takes images of {fixed[0]}x{fixed[1]}, got --size {arguments.size}")
    if height < 1:
        raise ValueError(f"expected a size of 1 pixel or more, got --size {arguments.size}")
    mean, std = (np.float32(getattr(arguments, name) or facts[name]) for name in ("mean", "std"))
    if mean.size not in (1, channels) or std.size not in (1, channels):
        raise ValueError(f"the network has {channels} channels: give one --mean and --std, or one for each")
    image = Image.open(arguments.image).convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = (pixels.reshape(height, width, channels) / 255 - mean) / std
    (scores,) = session.run(None, {input.name: pixels.transpose(2, 0, 1)[None]})
    names = facts.get("label_names")
    for index in np.argsort(-scores[0])[:5]:
        print(index, f"{scores[0, index]:.6g}", *([] if names is None else [names[index]]))


if __name__ == "__main__":
    main()
