"""Images with boxes, with masks of objects, or with a class for each pixel."""
