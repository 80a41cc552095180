#!/usr/bin/env bash
# pycocotools 2.0.11: an object of exactly 32 x 32 pixels is both a small and a medium one, of 96 x 96 a medium and a
# large one.
#
# A good guess: COCO's three sizes are a partition (area below 32², from 32² to 96², above 96²), so that each object
# counts in one of APs, APm and APl.
#
# What happens: an object is left out of a size if its area is below the lower limit or above the upper one, and the
# limits are shared. Equal areas are in both.
#
# Why it matters: for photos an area of exactly 1,024 is rare. For drawn or synthetic scenes, tiles, icons and digits
# of a fixed size it is the rule: then two of the three numbers are of the same objects. Count objects by size with
# both limits included if the counts shall explain the AP.
#
# Output seen (Python 3.11, x86_64 Linux); -1 says that there is no object of this size:
#   31 x 31: APs 1.0, APm -1.0, APl -1.0
#   32 x 32: APs 1.0, APm 1.0, APl -1.0
#   33 x 33: APs -1.0, APm 1.0, APl -1.0
#   96 x 96: APs -1.0, APm 1.0, APl 1.0
#   97 x 97: APs -1.0, APm -1.0, APl 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def by_size(side):
    truth = COCO()
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, side, side]}
    truth.dataset = {
        "images": [{"id": 1, "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "tile"}],
        "annotations": [{**box, "id": 1, "area": side * side, "iscrowd": 0}],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes([{**box, "score": 0.9}]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [round(float(value), 3) for value in evaluation.stats[3:6]]


with contextlib.redirect_stdout(io.StringIO()):
    found = {side: by_size(side) for side in (31, 32, 33, 96, 97)}
for side, (small, medium, large) in found.items():
    print(f"{side} x {side}: APs {small}, APm {medium}, APl {large}")
sizes = {side: [value > 0 for value in values] for side, values in found.items()}
assert sizes[32] == [True, True, False], "an object has one size: this finding is out of date"
assert sizes[96] == [False, True, True]
assert all(sum(sizes[side]) == 1 for side in (31, 33, 97))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
