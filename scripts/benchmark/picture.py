"""The pictures of dcn-bench: bars of ratios to the floor, or lines of times over size or threads."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from .measure import Row

Panels = dict[str, dict[str, dict[Any, float]]]  # by mode and provider: y values by x value


def plot(source: Path, target: Path) -> None:
    """Draw a JSON file of dcn-bench, one panel per mode.

    Raises:
        ValueError: If the file has no times.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    report = json.loads(source.read_text())
    label, lines = scaling([row for row in report["rows"] if "ms" in row])
    panels = lines or _ratios(report["rows"])
    if not panels:
        raise ValueError(f"{source} has no times to draw")
    height = 5 if lines else 8
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), height), squeeze=False, sharey=True)
    names = dict.fromkeys(name for providers in panels.values() for name in providers)
    colours = {name: f"C{i}" for i, name in enumerate(names)}  # the same in every panel
    for axis, (mode, providers) in zip(axes[0], panels.items(), strict=True):
        if lines:
            _draw_lines(axis, providers, colours, label)
        else:
            _draw_bars(axis, providers, colours)
        axis.set_title(mode)
        axis.legend(fontsize="small")
    if not lines:
        axes[0][0].invert_yaxis()
    about = f"{_processor(report)}, torch {report['versions']['torch']}, {report['commit']}"
    figure.suptitle(about, fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def scaling(rows: list[Row]) -> tuple[str, Panels]:
    """Return what grows over the rows, and milliseconds over it; nothing if the cases differ in more than that.

    What grows is the number of threads if it differs, else the number of output pixels.
    """
    panels: Panels = defaultdict(lambda: defaultdict(dict))
    if len({row["threads"] for row in rows}) > 1:
        for row in rows:
            panels[row["mode"]][f"{row['provider']} {row['case']}"][row["threads"]] = row["ms"]
        return "threads", panels
    if any(" " in row["case"] for row in rows):  # networks
        return "", {}
    shapes = {row["case"]: row["case"].split("-", 1) for row in rows}
    # batch x channels x height x width, and the rest of the case
    if len({(shape.split("x")[1], *rest) for shape, *rest in shapes.values()}) != 1 or len(shapes) < 2:
        return "", {}
    for row in rows:
        batch, _, height, width = (int(size) for size in shapes[row["case"]][0].split("x"))
        panels[row["mode"]][row["provider"]][batch * height * width] = row["ms"]
    return "output pixels of the batch", panels


def _ratios(rows: list[Row]) -> Panels:
    panels: Panels = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.get("ratio"):
            panels[row["mode"]][row["provider"]][row["case"]] = row["ratio"]
    return panels


def _draw_lines(axis: Any, providers: dict[str, dict[Any, float]], colours: dict[str, str], label: str) -> None:
    for provider, times in providers.items():
        at = sorted(times)
        axis.plot(at, [times[x] for x in at], marker="o", color=colours[provider], label=provider)
    axis.set(xscale="log", yscale="log", xlabel=label, ylabel="ms")
    axis.grid(alpha=0.3)


def _draw_bars(axis: Any, providers: dict[str, dict[Any, float]], colours: dict[str, str]) -> None:
    cases = list(dict.fromkeys(case for ratios in providers.values() for case in ratios))
    for i, (provider, ratios) in enumerate(providers.items()):
        at = [cases.index(case) + i / (len(providers) + 1) for case in ratios]
        height = 1 / (len(providers) + 1)
        axis.barh(at, list(ratios.values()), height=height, color=colours[provider], label=provider)
    axis.set(yticks=range(len(cases)), yticklabels=cases, xscale="log", xlabel="time / floor")
    axis.axvline(1, color="black", linewidth=0.8)


def _processor(report: dict[str, Any]) -> str:
    lines = [] if report["device"] != "cpu" else report["machine"]
    return next((line for line in lines if line.startswith("Model name")), report["device"])
