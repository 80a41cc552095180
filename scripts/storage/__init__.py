"""Output files: files that are complete or absent, checkpoints, tables."""
