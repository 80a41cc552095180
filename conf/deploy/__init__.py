"""Configs of dcn-export, dcn-migrate. Next to a group ``model/`` Hydra would read ``model=NAME`` as its choice."""
