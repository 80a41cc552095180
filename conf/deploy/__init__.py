"""The config of dcn-export. Next to a group ``model/`` Hydra would read ``model=NAME`` as its choice."""
