"""Table, leads and curves of the study on scenes, from its rows."""

import math
import statistics
from pathlib import Path
from typing import Any

from study_rows import rows

ORDER = ("plain", "wider", "longer", "longest", "head", "encoder", "both", "both, rate 1", "both, longer")
TITLES = {
    **{"wider": "plain, wider", "longer": "plain, longer", "longest": "plain, longest"},
    "both, rate 1": "both, full rate",
}
_SMOOTH = 5  # epochs
_LOWEST = 0.6  # of the best value: where the curves' axis begins
PLAIN = ("plain", "wider", "longer", "longest")
COLOURS = ("0.2", "0.5", "0.7", "0.82", "tab:green", "tab:blue", "tab:red", "tab:orange", "tab:purple")
Runs = dict[str, dict[int, dict[str, Any]]]  # by variant and seed


def read(path: Path) -> tuple[Runs, dict[str, float]]:
    """Return the finished runs of a file, and the CPU seconds of an epoch of each variant."""
    runs: Runs = {}
    seconds: dict[str, float] = {}
    for row in rows(path):
        if "variant" in row:
            runs.setdefault(row["variant"], {})[row["seed"]] = row
        else:
            seconds = row["epoch_cpu_seconds"]
    if seconds:
        seconds |= dict.fromkeys(("longer", "longest"), seconds["plain"])
        seconds |= dict.fromkeys(("both, rate 1", "both, longer"), seconds["both"])
    return {variant: dict(sorted(runs[variant].items())) for variant in ORDER if variant in runs}, seconds


def table(runs: Runs, seconds: dict[str, float], metrics: tuple[str, ...]) -> str:
    """Return each variant's metrics of the test split and its price, then the leads by seed, in Markdown."""
    head = ["test split, mean ± sample deviation", *metrics, "parameters", "epochs", "CPU time"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for variant, by_seed in runs.items():
        first = next(iter(by_seed.values()))
        time = first["epochs"] * seconds[variant]
        base = next(iter(runs["plain"].values()))["epochs"] * seconds["plain"]
        values = [_spread([row["test"][metric] for row in by_seed.values()]) for metric in metrics]
        price = [f"{first['parameters']:,}", str(first["epochs"]), f"{time / base:.2f}"]
        lines.append("| " + " | ".join([TITLES.get(variant, variant), *values, *price]) + " |")
    over = [variant for variant in PLAIN if variant in runs]
    lines += ["", "Lead in points: mean ± standard error (by seed):", ""]
    lines.append("| | | " + " | ".join(f"over {TITLES.get(variant, variant)}" for variant in over) + " |")
    lines.append("|---|---|" + "---|" * len(over))
    for variant in runs:
        for metric in metrics if variant not in PLAIN else ():
            leads = (_lead(runs[variant], runs[other], metric) for other in over)
            lines.append(f"| {TITLES.get(variant, variant)} | {metric} | " + " | ".join(leads) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f} (1 seed)"
    note = "" if len(values) == 3 else f" ({len(values)} seeds)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}{note}"


def _lead(mine: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]], metric: str) -> str:
    leads = [mine[seed]["test"][metric] - other[seed]["test"][metric] for seed in mine if seed in other]
    by_seed = ", ".join(f"{lead:+.1f}" for lead in leads) or "–"
    if len(leads) < 2:
        return by_seed
    error = statistics.stdev(leads) / math.sqrt(len(leads))
    return f"{statistics.mean(leads):+.1f} ± {error:.1f} ({by_seed})"


def _smooth(values: list[float]) -> list[float]:
    """Return the median of each epoch and those before it, as many as there are from ``_SMOOTH`` on."""
    return [statistics.median(values[i - _SMOOTH : i]) for i in range(_SMOOTH, len(values) + 1)]


def draw(runs: Runs, seconds: dict[str, float], metrics: tuple[str, ...], steps: int, path: Path) -> None:
    """Draw the metrics of the validation split over steps and over CPU seconds, each line a mean of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    colours = dict(zip(ORDER, COLOURS, strict=True))
    figure, axes = pyplot.subplots(
        len(metrics), 2, figsize=(9, 2.9 * len(metrics)), squeeze=False, sharex="col", sharey="row"
    )
    for row, metric in zip(axes, metrics, strict=True):
        for variant, by_seed in runs.items():
            curves = [_smooth(run["curve"][metric]) for run in by_seed.values()]
            means = [statistics.mean(values) for values in zip(*curves, strict=True)]
            epochs = range(_SMOOTH, len(means) + _SMOOTH)
            for axis, unit in zip(row, (steps, seconds[variant]), strict=True):
                x = [epoch * unit for epoch in epochs]
                axis.plot(x, means, color=colours[variant], label=TITLES.get(variant, variant), linewidth=1.2)
        row[0].set_ylabel(f"{metric}\nmedian of {_SMOOTH} epochs")
        # The first epochs of all variants are alike, and the ends lie close together.
        best = max(max(run["curve"][metric]) for by_seed in runs.values() for run in by_seed.values())
        row[0].set_ylim(bottom=_LOWEST * best)
    for axis, unit in zip(axes[-1], ("steps", "CPU seconds"), strict=True):
        axis.set_xlabel(f"{unit}, logarithmic")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout(pad=0.6, w_pad=3.5)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
