"""The processes that train together."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

from .. import devices
from ..config.schema import Train


def create_accelerator(config: Train) -> Accelerator:
    """Join the other processes, if ``accelerate launch`` or ``torchrun`` started some."""
    if config.device not in ("auto", "cpu"):
        devices.chosen(config.device)
        os.environ["ACCELERATE_TORCH_DEVICE"] = config.device
    # Processes on CPUs join only if accelerate is told to use CPUs.
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    # A second run in this process, in a sweep, may have another precision; the processes stay joined. The name is
    # private: if it is missing, such a sweep gets accelerate's own error.
    getattr(AcceleratorState, "_reset_state", bool)()
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.optim.accumulate, sync_with_dataloader=False
        ),
        dataloader_config=DataLoaderConfiguration(split_batches=True, dispatch_batches=False),
    )
