"""Hydra configs of the console commands; the schema is in ``scripts/config/schema.py``."""
