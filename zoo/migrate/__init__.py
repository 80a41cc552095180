"""Other libraries' deformable networks: checkpoints (``load_``, ``build``, ``read``) and layers (``replace_``)."""

from zoo.migrate.checkpoint import Checkpoint, read
from zoo.migrate.live import Replaced, replace_
from zoo.migrate.load import build, load_
from zoo.migrate.report import Migration

__all__ = ["Checkpoint", "Migration", "Replaced", "build", "load_", "read", "replace_"]
