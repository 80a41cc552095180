#!/usr/bin/env bash
# torchvision 0.29.1: ops.masks_to_boxes ends a box at the object's last pixel, not behind it. A box is one pixel
# narrower and lower than its object, and an object one pixel wide or high gets a box of no area, which torchvision's
# own Mask R-CNN refuses.
#
# A good guess: the box of a mask of 10 x 10 pixels is 10 wide and 10 high, as COCO's boxes, torchvision's box_area,
# and its transforms take boxes: a box [5, 15] on 20 pixels flips to [5, 15].
#
# What happens: x2 and y2 are the largest indices of the mask. The box of 10 x 10 pixels has the area 81. For small
# objects the loss is large (5 x 5 pixels: 16 instead of 25), and all IoU thresholds are missed a little.
#
# Why it matters: label maps of cells, nuclei or instances become the boxes of a detector with this function. Add 1 to
# x2 and y2.
#
# Output seen (Python 3.11, x86_64 Linux):
#   10 x 10 pixels: box [5.0, 5.0, 14.0, 14.0], box area 81
#   5 x 5 pixels: box [2.0, 2.0, 6.0, 6.0], box area 16
#   1 x 7 pixels: box [9.0, 2.0, 9.0, 8.0], box area 0
#   flipped box [6.0, 5.0, 15.0, 14.0], box of the flipped mask [5.0, 5.0, 14.0, 14.0]
#   Mask R-CNN: All bounding boxes should have positive height and width.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import torch
from torchvision import tv_tensors
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import box_area, masks_to_boxes
from torchvision.transforms.v2 import functional


def mask(x1, y1, x2, y2):
    whole = torch.zeros(1, 20, 20, dtype=torch.uint8)
    whole[:, y1:y2, x1:x2] = 1
    return whole


areas = []
for x1, y1, x2, y2 in ((5, 5, 15, 15), (2, 2, 7, 7), (9, 2, 10, 9)):
    boxes = masks_to_boxes(mask(x1, y1, x2, y2))
    areas.append(int(box_area(boxes)))
    print(f"{x2 - x1} x {y2 - y1} pixels: box {boxes[0].tolist()}, box area {box_area(boxes).item():.0f}")

square = mask(5, 5, 15, 15)
boxes = tv_tensors.BoundingBoxes(masks_to_boxes(square), format="XYXY", canvas_size=(20, 20))
flipped = masks_to_boxes(functional.horizontal_flip(tv_tensors.Mask(square)))[0].tolist()
print(f"flipped box {functional.horizontal_flip(boxes)[0].tolist()}, box of the flipped mask {flipped}")

torch.manual_seed(0)
model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64)
thin = mask(9, 2, 10, 9)
target = {"boxes": masks_to_boxes(thin), "labels": torch.tensor([1]), "masks": thin}
try:
    model([torch.rand(3, 20, 20)], [target])
    raise SystemExit("Mask R-CNN took the box: this finding is out of date")
except (AssertionError, ValueError) as error:
    print(f"Mask R-CNN: {str(error).split(' Found')[0]}")
    assert "positive height and width" in str(error)
assert areas == [81, 16, 0], "boxes end behind the last pixel: this finding is out of date"
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
