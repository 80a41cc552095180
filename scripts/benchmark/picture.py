"""The pictures of dcn-bench: bars of ratios to the floor, or lines of times over size or threads."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from .measure import Row

_TITLES = {name: f"ours, {name}" for name in ("eager", "compiled", "composition")}
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
    names = dict.fromkeys(name for providers in panels.values() for name in providers)
    cases = {case for providers in panels.values() for ratios in providers.values() for case in ratios}
    height = 5 if lines else 1.5 + 0.09 * len(cases) * (len(names) + 1)
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), height), squeeze=False, sharey=True)
    colours = {name: f"C{i}" for i, name in enumerate(names)}  # the same in every panel
    for axis, (mode, providers) in zip(axes[0], panels.items(), strict=True):
        if lines:
            _draw_lines(axis, providers, colours, label)
        else:
            _draw_bars(axis, providers, colours)
        axis.set_title(mode)
    if not lines:
        axes[0][0].invert_yaxis()
    about = f"{_processor(report)}, torch {report['versions']['torch']}, {report['commit']}"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    handles = {
        text: handle for axis in axes[0] for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 8}
    figure.legend(
        [handles[name] for name in names],
        [_TITLES.get(name, name) for name in names],
        title=about,
        fontsize="small",
        **place,
    )
    figure.savefig(target, dpi=110, bbox_inches="tight")
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
    floor = "plain" if "plain" in providers else "conv2d" if "conv2d" in providers else "the floor"
    cases = list(dict.fromkeys(case for ratios in providers.values() for case in ratios))
    height = 1 / (len(colours) + 1)  # the last one is a gap
    shifts = {name: (i - (len(colours) - 1) / 2) * height for i, name in enumerate(colours)}
    for name, ratios in providers.items():
        at = [cases.index(case) + shifts[name] for case in ratios]
        axis.barh(at, list(ratios.values()), height=height, color=colours[name], label=name)
    axis.set(yticks=range(len(cases)), yticklabels=cases, xscale="log", xlabel=f"time / time of {floor}")
    axis.margins(y=0.01)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")  # 0.01 and 10, not powers of 10
    axis.axvline(1, color="black", linewidth=0.8)


def _processor(report: dict[str, Any]) -> str:
    """Return the name of the GPU or, as lscpu says it, of the processor."""
    lines = [] if report["device"] != "cpu" else report["machine"]
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("Model name"))
    return next(names, report["device"])
