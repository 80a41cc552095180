"""dcn-migrate: write another library's checkpoint, as a network of timm's, into a folder of zoo.save."""

from pathlib import Path
from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

import zoo
from zoo.pretrained import CONFIG, WEIGHTS

from .config import command, schema
from .storage import sharing, weights
from .storage.existing import existing
from .storage.files import atomically

REST = "rest.safetensors"


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf.deploy", config_name="migrate")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line():
        run(cast(schema.Migrate, OmegaConf.to_object(config)))


def run(config: schema.Migrate) -> None:
    """Write the folder, and print what was loaded, renamed and left out.

    Raises:
        FileExistsError: If the folder holds a model already.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is no checkpoint, or of no architecture that timm has, or nothing in it is deformable.
    """
    if config.checkpoint is None or config.folder is None:
        raise ValueError("expected a file and a folder: dcn-migrate checkpoint=FILE folder=FOLDER")
    sharing.check_free(config.folder, (CONFIG, WEIGHTS, REST), config.overwrite)
    existing(config.checkpoint, f"expected a checkpoint file, got {config.checkpoint!r}", weights.SUFFIXES)
    model, migration = zoo.migrate.build(
        config.checkpoint, caffe=config.caffe, modulated=config.modulated, **config.arguments
    )
    if not migration.layers:
        raise ValueError(
            f"no layer of the backbone in {config.checkpoint} predicts offsets, so it is a plain network's; "
            "zoo.migrate.build loads it all the same"
        )
    zoo.save(model, config.folder, config.arguments)
    if migration.rest:  # neck and heads
        path = Path(config.folder, REST)
        rest = {key: value.contiguous().clone() for key, value in migration.rest.items()}
        atomically(path, lambda temporary: save_file(rest, temporary))
    print(f"{migration}\nwritten: {config.folder}, to be read by zoo.load({config.folder!r})")


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Migrate)
    _main()


if __name__ == "__main__":
    main()
