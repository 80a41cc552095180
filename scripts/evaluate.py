"""dcn-evaluate: accuracy, confusion matrix, accuracy under corruptions and throughput of checkpoints."""

import sys
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .inspect.evaluation import run


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="evaluate")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line():
        run(cast(schema.Evaluate, OmegaConf.to_object(config)), Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Evaluate)
    if not any(argument.startswith("checkpoint=") for argument in sys.argv[1:]) and not _asks_for_help():
        sys.exit("error: no checkpoint given; set checkpoint=runs/train/<time>/dcn/last.safetensors")
    _main()


def _asks_for_help() -> bool:
    return any(argument in ("--help", "-h", "--hydra-help", "--cfg", "-c") for argument in sys.argv[1:])


if __name__ == "__main__":
    main()
