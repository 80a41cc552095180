"""Deformable convolutions for timm networks: ``inject_`` converts a network, ``plan`` shows what it would do."""

import dcn_ops.interop.flops  # noqa: F401  (so that torch's FLOP counter counts converted networks)
import zoo.networks.internimage  # noqa: F401  (registers the networks with timm)
from zoo import migrate, optim
from zoo.batchnorm import fuse_batch_norm_
from zoo.card import Card
from zoo.config import DCNConfig
from zoo.fold import fold_
from zoo.hub import push
from zoo.inject import inject_, plan
from zoo.registry import list_models
from zoo.results import Folding, Injection
from zoo.saved import load, save

__all__ = [
    "Card",
    "DCNConfig",
    "Folding",
    "Injection",
    "fold_",
    "fuse_batch_norm_",
    "inject_",
    "list_models",
    "load",
    "migrate",
    "optim",
    "plan",
    "push",
    "save",
]
