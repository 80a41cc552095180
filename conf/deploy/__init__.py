"""The config of dcn-export: beside the group ``model/`` Hydra would take ``model=NAME`` for a choice of it."""
