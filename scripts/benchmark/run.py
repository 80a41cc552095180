"""dcn-bench: the cost of a deformable convolution, compared with the plain one and with other implementations."""

import sys
from pathlib import Path

import torch
from rich.console import Console

from .. import devices
from ..config.ranges import check_least
from ..config.schema import Bench
from ..storage import markdown
from . import bounds, deployed, document, measure, memory, models, picture, show
from .cases import MODELS, choose
from .providers import PROVIDERS


def run(config: Bench) -> list[measure.Row]:
    """Measure, print and save what the config selects.

    Raises:
        KeyboardInterrupt: On Ctrl-C, once the results so far are saved.
        ValueError: If a suite, case, provider or mode is unknown, if there is only one round, which has no
            quartiles, or if a Markdown file is given without ``plot``.
    """
    if config.markdown:
        raise ValueError(f"markdown={config.markdown} needs a JSON file; add plot=FILE")
    if config.rounds < 2:
        raise ValueError(f"expected at least 2 rounds, got rounds={config.rounds}")
    if unknown := set(config.providers) - set(PROVIDERS):
        raise ValueError(f"expected providers among {', '.join(PROVIDERS)}, got {sorted(unknown)}")
    if unknown := set(config.modes) - set(measure.MODES):
        raise ValueError(f"expected modes among {', '.join(measure.MODES)}, got {sorted(unknown)}")
    check_least(config, {"batch": 1})
    if not config.threads or min(config.threads) < 1:
        raise ValueError(f"expected threads of 1 or more, got threads={config.threads}")
    if config.device not in ("cpu", "cuda"):
        raise ValueError(f"expected device=cpu or device=cuda, got device={config.device}")
    devices.chosen(config.device)
    console, rows = Console(width=160), list[measure.Row]()
    interruption = None
    try:
        _measure(config, rows, console)
    except KeyboardInterrupt as stopped:
        interruption = stopped
        console.print("interrupted; these are the results until then")
    verdicts = bounds.verdicts(rows) if config.device == "cpu" else bounds.gpu_verdicts(rows)
    show.tables(rows, verdicts, console)
    path = Path(config.json or f"benchmarks/results/{config.device}-{config.suite}.json")
    show.save(rows, verdicts, path)
    console.print(f"written: {path}")
    if interruption is not None:
        raise interruption
    if config.strict and not all(v["met"] for v in verdicts):
        sys.exit("error: a bound is missed")
    return rows


def _measure(config: Bench, rows: list[measure.Row], console: Console) -> None:
    if config.suite in ("models", "deploy"):
        _measure_networks(config, rows, console)
        return
    for case in choose(config.suite, config.case):
        console.print(f"{case.name} ...")
        for threads in config.threads:
            torch.set_num_threads(threads)
            for mode in config.modes:
                new = measure.rows_of(
                    case, mode, config.providers, config.offset_sigma, config.device, config.rounds
                )
                if config.memory and config.device == "cpu":
                    for row in new:
                        if "ms" in row:
                            row["peak"] = memory.peak_of(case.name, mode, row["provider"], config.offset_sigma)
                rows += new
                torch.compiler.reset()


def _measure_networks(config: Bench, rows: list[measure.Row], console: Console) -> None:
    torch.set_num_threads(config.threads[0])
    for name in config.models or (MODELS if config.suite == "models" else deployed.MODELS):
        console.print(f"{name} ...")
        if config.suite == "deploy":
            rows += deployed.rows_of(name, config)
        else:
            rows += models.rows_of(name, config)


def draw(source: Path, text: Path | None) -> None:
    """Draw a JSON file of dcn-bench into ``docs/img``, and write its tables into a Markdown file.

    Raises:
        FileNotFoundError: If a file doesn't exist.
        PermissionError: If the Markdown file can't be written to.
        ValueError: If the JSON file has no times, or the Markdown file doesn't have its marks.
    """
    if not source.is_file():
        raise FileNotFoundError(f"expected a JSON file of dcn-bench, got plot={source}")
    if text:  # checked before the picture is drawn
        markdown.around_block(text, source.stem)
    target = Path("docs/img") / f"{source.stem}.png"
    picture.plot(source, target)
    print(f"drawn: {target}")
    if text:
        document.write(source, text)
        print(f"written: {text}")
