"""dcn-bench: the cost of a deformable convolution, compared with the plain one and with other implementations."""

from pathlib import Path
from typing import cast

import hydra
from omegaconf import DictConfig, OmegaConf

from .benchmark.run import draw, run
from .config import command, schema


@hydra.main(version_base="1.3", config_path="pkg://zoo.conf", config_name="bench")
def _main(config: DictConfig) -> None:
    bench = cast(schema.Bench, OmegaConf.to_object(config))
    with command.errors_in_one_line():
        if bench.plot:
            draw(Path(bench.plot), Path(bench.markdown) if bench.markdown else None)
        else:
            run(bench)


def main() -> None:
    """Entry point of the console command."""
    command.prepare(schema.Bench)
    _main()


if __name__ == "__main__":
    main()
