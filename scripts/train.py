"""dcn-train: fine-tune a timm backbone with deformable convolutions, and the plain one for comparison."""

import logging
import os
import sys
from pathlib import Path
from typing import cast

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .training import resume
from .training.objective import objective
from .training.run import run
from .training.stop import Stopped

_log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="train")
def _main(config: DictConfig) -> float | None:
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    runs = [path.parent for path in (folder.parents[sweep]).glob(("*/" * (1 + sweep)) + resume.NAME)]
    train = cast(schema.Train, OmegaConf.to_object(config))
    try:
        run(train, folder, runs)
    except (Stopped, KeyboardInterrupt) as stopped:
        signum = stopped.signum if isinstance(stopped, Stopped) else 2
        _exit(f"{str(stopped) or 'interrupted'}; the same command with resume=auto goes on", 128 + signum)
    except (ValueError, OSError, FloatingPointError) as error:
        # A sweep continues to its own report, and a developer needs the stack.
        if sweep or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        command.remove_unused_run_folder()
        _exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), 1)
    return objective(folder) if sweep else None  # for sweepers that search, such as optuna's


def _exit(message: str, code: int) -> None:
    if not _rank():
        print(message, file=sys.stderr)
    sys.exit(code)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Train)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if {"-m", "--multirun"} & set(sys.argv):
            sys.exit("error: a sweep starts its own runs; launch one run with accelerate or torchrun, without -m")
        if _rank():
            # Only the first process makes the folder, logs and prints.
            sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    _main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
