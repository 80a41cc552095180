"""The tables of the study, written into ``docs/study.md``, and its picture."""

import json
import statistics
from pathlib import Path
from typing import Any

from zoo.scripts.storage import markdown

ROOT = Path(__file__).parent.parent
VARIANTS = {
    "plain": "plain",
    "wider": "plain, wider",
    "longer": "plain, longer",
    "dcnv1": "DCNv1",
    "dcnv2": "DCNv2",
}
NAMES = {"mnist_r": "R", "mnist_rts": "RTS", "mnist_p": "P", "mnist_e": "E", "elpv": "solar cells"}

Runs = dict[str, dict[str, dict[int, dict[str, Any]]]]  # by data, variant and seed


def write(results: Path) -> None:
    """Put the tables of every results file that is there into its block of ``docs/study.md``, and draw."""
    page = ROOT / "docs" / "study.md"
    all_runs = Runs()
    for study in ("digits", "photos"):
        runs = read(results / f"study-{study}.jsonl")
        if not runs:
            continue
        all_runs |= runs
        markdown.replace_block(page, study, table(runs))
    picture = ROOT / "docs" / "img" / "study.png"
    draw(all_runs, picture)
    print(f"written: {page}, {picture}")


def read(path: Path) -> Runs:
    """Return the finished runs of a file; none where there is no file."""
    runs: Runs = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if "variant" in row:
            runs.setdefault(row["data"], {}).setdefault(row["variant"], {})[row["seed"]] = row
    return runs


def table(runs: Runs) -> str:
    """Return top-1 by data and variant, what each variant cost, and DCNv2's lead, in Markdown."""
    present = [v for v in VARIANTS if any(v in variants for variants in runs.values())]
    lines = [
        "| top-1 %, mean ± sample deviation | " + " | ".join(VARIANTS[v] for v in present) + " |",
        "|---|" + "---|" * len(present),
    ]
    lines += [
        f"| {NAMES[data]} | " + " | ".join(_spread(variants.get(v, {})) for v in present) + " |"
        for data, variants in runs.items()
    ]
    by_variant = {v: [row for variants in runs.values() for row in variants.get(v, {}).values()] for v in present}
    for title, value in (
        ("parameters", "parameters"),
        ("epochs", "epochs"),
        ("CPU seconds, median", "cpu_seconds"),
    ):
        numbers = (statistics.median(row[value] for row in rows) for rows in by_variant.values())
        lines.append(f"| {title} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |")
    lines += ["", "Lead of DCNv2, in points, by seed:", "", "| over | " + " | ".join(NAMES[d] for d in runs) + " |"]
    lines.append("|---|" + "---|" * len(runs))
    for variant in present:
        if variant != "dcnv2":
            leads = (_lead(variants, variant) for variants in runs.values())
            lines.append(f"| {VARIANTS[variant]} | " + " | ".join(leads) + " |")
    return "\n".join(lines)


def _spread(by_seed: dict[int, dict[str, Any]]) -> str:
    values = [row["top1"] for row in by_seed.values()]
    if len(values) < 2:
        return f"{values[0]:.1f} (1 seed)" if values else "–"
    note = "" if len(values) == 3 else f" ({len(values)} seeds)"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}{note}"


def _lead(variants: dict[str, dict[int, dict[str, Any]]], over: str) -> str:
    dcn, other = variants.get("dcnv2", {}), variants.get(over, {})
    return ", ".join(f"{dcn[s]['top1'] - other[s]['top1']:+.1f}" for s in dcn if s in other) or "–"


def draw(runs: Runs, path: Path) -> None:
    """Draw every run as a dot and the mean of a variant as a line, a panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(VARIANTS, ("0.35", "0.6", "tab:blue", "tab:orange", "tab:red"), strict=True))
    figure, axes = pyplot.subplots(1, len(runs), figsize=(2.3 * len(runs), 3.3), squeeze=False)
    for axis, (data, variants) in zip(axes[0], runs.items(), strict=True):
        present = [v for v in VARIANTS if v in variants]
        for x, variant in enumerate(present):
            values = [row["top1"] for row in variants[variant].values()]
            axis.plot([x] * len(values), values, "o", color=colours[variant], markersize=5, alpha=0.75)
            axis.hlines(statistics.mean(values), x - 0.33, x + 0.33, color=colours[variant], linewidth=2)
        axis.set_xticks(range(len(present)), [VARIANTS[v] for v in present], rotation=40, ha="right", fontsize=8)
        axis.set_xlim(-0.6, len(present) - 0.4)
        axis.set_title(NAMES[data], fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("top-1 %")
    figure.tight_layout(pad=0.5)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
