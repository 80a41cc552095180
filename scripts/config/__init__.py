"""The schema of the configs, and the command line."""
