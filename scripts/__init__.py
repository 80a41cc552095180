"""Console commands: the one place that knows Hydra."""
