"""dcn-export: write a network's file for each runtime; a file gets its final name once it is verified there."""

import signal
import sys
from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf

from .config import command, schema
from .deploy.run import run
from .deploy.verify import VerificationError


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf.deploy", config_name="export")
def _main(config: DictConfig) -> None:
    with command.errors_in_one_line(VerificationError, left="complete and verified"):
        rows = run(cast(schema.Export, OmegaConf.to_object(config)))
    written = any(row.file for row in rows)
    if failed := [row.target for row in rows if row.reason is not None and not (row.left_out and written)]:
        sys.exit(f"error: no file for {', '.join(failed)}; files of earlier runs, if any, are unchanged")


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt("terminated")  # as Ctrl-C does: unfinished files are removed


def main() -> None:
    """Entry point of the console command."""
    signal.signal(signal.SIGTERM, _terminated)
    command.prepare(schema.Export)
    _main()


if __name__ == "__main__":
    main()
