"""What is written: whole files, checkpoints, tables."""
