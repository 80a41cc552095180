"""dcn-visualize: where a network samples, how far its offsets reach, and what its outputs depend on."""

from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .inspect.visualization import run


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="visualize")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line():
        run(cast(schema.Visualize, OmegaConf.to_object(config)), Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Visualize)
    _main()


if __name__ == "__main__":
    main()
