"""Console commands, the only code that imports Hydra."""
