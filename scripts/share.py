"""dcn-share: write a checkpoint of dcn-train as a folder for zoo.load, or push it to the Hugging Face hub."""

from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .storage import sharing
from .storage.existing import existing


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="share")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line():
        run(cast(schema.Share, OmegaConf.to_object(config)))


def run(config: schema.Share) -> None:
    """Write the folder, push the network, or both.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If the folder has a network already, without ``overwrite``.
        ValueError: If neither is asked for, or the network can't be shared.
        OSError: If the hub refuses the upload.
    """
    if config.checkpoint is None or (config.folder is None and config.push_to is None):
        raise ValueError(
            "expected a checkpoint and where it goes: dcn-share checkpoint=FILE folder=FOLDER, or push_to=user/repo"
        )
    path = existing(config.checkpoint)
    if config.folder is not None:
        sharing.to_folder(path, config.folder, license=config.license, overwrite=config.overwrite)
        print(f"written: {config.folder}, to be read by zoo.load({config.folder!r})")
    if config.push_to is not None:
        address = sharing.push(path, config.push_to, license=config.license, private=config.private)
        print(f"pushed: {address}, to be read by zoo.load({config.push_to!r})")


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Share)
    _main()


if __name__ == "__main__":
    main()
