"""dcn-predict: labels, boxes or masks of a trained network for a folder of images, with pictures."""

from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .inspect.prediction import run


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="predict")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line():
        if missing := sorted(str(key) for key in OmegaConf.missing_keys(config)):
            raise ValueError(
                f"set {', '.join(f'{key}=' for key in missing)}: dcn-predict checkpoint=PATH images=FOLDER"
            )
        run(cast(schema.Predict, OmegaConf.to_object(config)), Path(HydraConfig.get().runtime.output_dir))


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Predict)
    _main()


if __name__ == "__main__":
    main()
