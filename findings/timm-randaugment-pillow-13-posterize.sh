#!/usr/bin/env bash
# timm 1.0.31 with Pillow 13.0.0: the recipe "rand-m9-mstd0.5-inc1" raises ValueError for some images of an epoch.
#
# A good guess: timm's own string of RandAugment, which most of its published recipes use, takes every RGB image with
# the newest Pillow; or it fails at once.
#
# What happens: the magnitude is drawn anew for every image (mstd). At magnitude 10 the increasing posterisation asks
# for 0 bits. Pillow 12 made a black image of it; Pillow 13 refuses less than 1 bit. So one worker of a loader raises
# after some hundred images. So it is with "rand-tweights", whose magnitude is 10.
#
# Why it matters: the training dies in the middle of its first epoch, and the message names neither the operation nor
# the string. Leave out "inc1", or have the operation keep one bit.
#
# Output seen (Python 3.11, x86_64 Linux), of 2,000 calls with seed 0:
#   Pillow 12.0.0, rand-m9-mstd0.5-inc1: 0 errors
#   Pillow 12.0.0, rand-tweights: 0 errors
#   Pillow 13.0.0, rand-m9-mstd0.5-inc1: 3 errors, bits must be between or equal to 1 and 8
#   Pillow 13.0.0, rand-tweights: 6 errors, bits must be between or equal to 1 and 8
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import random
import sys

import numpy as np
import PIL
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_train

for recipe in ("rand-m9-mstd0.5-inc1", "rand-tweights"):
    random.seed(0)
    np.random.seed(0)
    _, augment, _ = transforms_imagenet_train(32, auto_augment=recipe, separate=True)
    image = Image.fromarray(np.random.randint(0, 256, (32, 32, 3), np.uint8))
    errors = []
    for _ in range(2000):
        try:
            augment(image)
        except ValueError as error:
            errors.append(str(error))
    print(f"Pillow {PIL.__version__}, {recipe}: {len(errors)} errors" + (f", {errors[0]}" if errors else ""))
    assert bool(errors) == (sys.argv[1] == "13.0.0"), "this finding is out of date"
PROGRAM
for version in 12.0.0 13.0.0; do
  "$folder/venv/bin/pip" install --quiet "Pillow==$version"
  "$folder/venv/bin/python" "$folder/program.py" "$version"
done
