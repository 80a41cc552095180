"""The tables that show an ``Injection`` and a ``Folding``."""

import sys
from collections import defaultdict
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from zoo.results import Folding, Injection, Replacement


def show(table: Table) -> None:
    """Print a table to stdout."""
    # In a log, where no terminal wraps the table, a row is one line.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, highlight=False).print(table)


def injection_table(injection: Injection) -> Table:
    """Return a table with a row for each replacement and, if there are several, each part; and the totals below."""
    count = len(injection.replacements)
    parts = injection.parts if len(injection.parts) > 1 else {}
    result = Table(caption=_caption(injection), caption_justify="left", show_footer=True)
    result.add_column("layer", footer=f"whole network ({count} replaced)", overflow="fold")
    if parts:
        result.add_column("part")
    result.add_column("stage", justify="right")
    result.add_column("old -> new", overflow="fold")
    result.add_column("parameters", _total(injection.params_before, injection.params_after), justify="right")
    result.add_column("FLOPs", _total(injection.flops_before, injection.flops_after), justify="right")
    for r in injection.replacements:
        result.add_row(*_row(r, [r.part] if parts else []))
    result.add_section()
    for name, part in parts.items():
        params, flops = _total(part.params_before, part.params_after), _total(part.flops_before, part.flops_after)
        result.add_row(f"{part.replaced} replaced", name, "", "", params, flops)
    return result


def folding_table(folding: Folding, saved: Mapping[str, int | None]) -> Table:
    """Return a table with a row per layer: the parameters that folding it ``saved``, or why the layer was kept."""
    before, after = folding.params_before, folding.params_after
    result = Table(show_footer=True)
    result.add_column("layer", f"{len(folding.folded)} folded, {len(folding.kept)} kept", overflow="fold")
    result.add_column("folded, or why not", overflow="fold")
    result.add_column("parameters", f"{before:,} -> {after:,} ({after / before - 1:+.1%})", justify="right")
    for name, parameters in saved.items():
        result.add_row(name, folding.kept.get(name, "folded"), "–" if parameters is None else f"{-parameters:,}")
    return result


def _caption(injection: Injection) -> str:
    reasons = defaultdict(list)
    for r in injection.replacements:
        if r.changes_output is not None:
            reasons[f"CHANGES THE OUTPUT ({r.changes_output})"].append(r.fqn)
    for name, reason in injection.refused.items():
        reasons[f"stays as it is ({reason})"].append(name)
    lines = [f"{reason}: {', '.join(names)}" for reason, names in reasons.items()]
    return "\n".join([*lines, _about_flops(injection)])


def _about_flops(injection: Injection) -> str:
    if injection.input_size is None:
        return "FLOPs are unknown without input_size=(C, H, W)"
    size = "x".join(map(str, injection.input_size))
    if injection.flops_before is None:
        return f"FLOPs are unknown: the network doesn't run on an image of {size}; pass its input_size=(C, H, W)"
    seen = injection.seen_size
    resized = "" if seen is None else f", which the network resizes to {seen[0]}x{seen[1]}"
    return f"FLOPs = 2 x multiply-adds, for one image of {size}{resized}"


def _row(r: Replacement, part: list[str]) -> tuple[str, ...]:
    return (
        r.fqn,
        *part,
        "–" if r.stage is None else str(r.stage),
        # The arguments are the convolution's, which Replacement holds.
        f"{_class(r.old)} -> {_class(r.new)}",
        _change(r.params_before, r.params_after),
        _change(r.flops_before, r.flops_after),
    )


def _class(representation: str) -> str:
    return representation.partition("(")[0]


def _total(before: int | None, after: int | None) -> str:
    if not before or after is None:
        return _change(before, after)
    return f"{_change(before, after)} ({(after / before - 1):+.1%})"


def _change(before: int | None, after: int | None) -> str:
    return f"{_short(before)} -> {_short(after)}"


def _short(number: int | None) -> str:
    if number is None:
        return "–"
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)
