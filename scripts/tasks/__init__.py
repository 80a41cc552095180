"""The training's task: loss and metrics."""
