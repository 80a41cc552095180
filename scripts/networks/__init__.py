"""Networks of a recipe: a timm network, or a detector or segmenter around it."""
