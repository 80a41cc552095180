"""The tables of dcn-bench, and its JSON."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..storage.files import atomically
from ..storage.provenance import provenance
from .measure import Row


def tables(rows: list[Row], verdicts: list[dict[str, Any]], console: Console) -> None:
    """Print the measurements, and each bound as met or missed."""
    table = Table("case", "mode", "threads", "provider", "ms", "quartiles", "x floor", "peak MiB")
    for row in rows:
        head = [row["case"], row["mode"], str(row["threads"]), row["provider"]]
        if note := row.get("wrong") or row.get("refused"):
            table.add_row(*head, "wrong" if "wrong" in row else "-", note, "", "")
            continue
        quartiles = "{:.2f}-{:.2f}".format(*row["quartiles"]) if "quartiles" in row else ""
        ms = [f"{row['ms']:.2f}" if "ms" in row else "", quartiles]
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
        table.add_row(*head, *ms, ratio, f"{row['peak'] / 2**20:.1f}" if row.get("peak") is not None else "")
    console.print(table)
    if verdicts:
        table = Table("case", "mode", "provider", "against", "at most", "measured", "")
        for v in verdicts:
            mark = "met" if v["met"] else "missed"
            numbers = f"{v['limit']:.2f}", f"{v['ratio']:.2f}"
            table.add_row(v["case"], v["mode"], v["provider"], v["peer"], *numbers, mark)
        console.print(table)
        console.print(f"{sum(v['met'] for v in verdicts)} of {len(verdicts)} bounds met")


def save(rows: list[Row], verdicts: list[dict[str, Any]], path: Path) -> None:
    """Write the JSON file, either completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**provenance("dcn-bench"), "rows": rows, "bounds": verdicts}, indent=1) + "\n"

    def write(new: Path) -> None:
        new.write_text(content)

    atomically(path, write)
