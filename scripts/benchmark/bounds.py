"""What the operator is held to: bounds on ratios of medians, met or missed."""

import fnmatch
from dataclasses import dataclass
from typing import Any

from scripts.benchmark.measure import Row


@dataclass(frozen=True, kw_only=True)
class Bound:
    """``provider`` takes at most ``limit`` times as long as ``peer``, in every case that ``cases`` match."""

    cases: tuple[str, ...]
    mode: str
    provider: str
    peer: str
    limit: float


def _dense(channels: str, limit: float) -> list[Bound]:
    cases = tuple(f"*x{c}x*" for c in channels.split())
    return [
        Bound(cases=cases, mode=mode, provider=provider, peer="conv2d", limit=limit)
        for mode in ("forward", "training")
        for provider in ("eager", "compiled")
    ]


# Grouped, depthwise and half-precision cases have a suffix; these patterns have none.
BOUNDS = [
    *_dense("256 512", 1.15),
    *_dense("128", 1.35),
    *_dense("64", 1.7),
    *(
        Bound(cases=("*",), mode="forward", provider="eager", peer=p, limit=1.0)
        for p in ("onnxruntime", "openvino")
    ),
    Bound(cases=("*-dw", "*-g*"), mode="forward", provider="eager", peer="torchvision", limit=1 / 4),
    Bound(cases=("*-dw", "*-g*"), mode="training", provider="eager", peer="torchvision", limit=1 / 8),
    Bound(cases=("resnet50 *",), mode="inference", provider="dcn", peer="plain", limit=1.35),
    Bound(cases=("resnet50 *",), mode="training", provider="dcn", peer="plain", limit=1.4),
    *(
        Bound(cases=("resnet50 *",), mode=mode, provider="dcn compiled", peer="plain compiled", limit=1.25)
        for mode in ("inference", "training")
    ),
]
BOUNDS += [
    Bound(cases=("*",), mode="deployed", provider=provider, peer="eager", limit=1.0)
    for provider in ("compile", "aoti")
]
BEST_DEPLOYED = 1.25  # times the plain network, each in the runtime that is its fastest
MEMORY_BUDGET = 64 * 2**20  # bytes beyond the plain convolution's peak


def verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Return every bound that the rows can judge, with its ratio and whether it is met."""
    measured = {(r["case"], r["mode"], r["provider"], r["threads"]): r["ms"] for r in rows if "ms" in r}
    found = []
    for (case, mode, provider, threads), value in measured.items():
        for bound in BOUNDS:
            peer = measured.get((case, mode, bound.peer, threads))
            if peer and (mode, provider) == (bound.mode, bound.provider) and _matches(case, bound):
                ratio = value / peer
                found.append(
                    {"case": case, "mode": mode, "provider": provider, "peer": bound.peer, "limit": bound.limit}
                    | {"ratio": ratio, "met": ratio <= bound.limit}
                )
    return found + _half(measured) + _deployed(rows) + _memory(rows)


def _matches(case: str, bound: Bound) -> bool:
    plain = bound.peer == "conv2d"
    return not (plain and "-" in case) and any(fnmatch.fnmatch(case, pattern) for pattern in bound.cases)


def _half(measured: dict[tuple[str, str, str, int], float]) -> list[dict[str, Any]]:
    """Bfloat16 is no slower than float32 of the same case, where both were measured."""
    found = []
    for (case, mode, provider, threads), value in measured.items():
        wide = measured.get((case.removesuffix("-bfloat16"), mode, provider, threads))
        if case.endswith("-bfloat16") and provider in ("eager", "compiled") and wide:
            row = {"case": case, "mode": mode, "provider": provider, "peer": "float32", "limit": 1.0}
            found.append({**row, "ratio": value / wide, "met": value <= wide})
    return found


def _deployed(rows: list[Row]) -> list[dict[str, Any]]:
    found = []
    for case in dict.fromkeys(r["case"] for r in rows if r["mode"] == "deployed"):
        times = {r["provider"]: r["ms"] for r in rows if r["case"] == case and r.get("ms")}
        plain, dcn = ({n: t for n, t in times.items() if n.startswith("plain ") == k} for k in (True, False))
        if plain and dcn and case.startswith("resnet50 "):
            best, floor = min(dcn, key=dcn.__getitem__), min(plain, key=plain.__getitem__)
            ratio = dcn[best] / plain[floor]
            row = {"case": case, "mode": "deployed", "provider": best, "peer": floor, "limit": BEST_DEPLOYED}
            found.append({**row, "ratio": ratio, "met": ratio <= BEST_DEPLOYED})
    return found


def _memory(rows: list[Row]) -> list[dict[str, Any]]:
    peaks = {(r["case"], r["mode"], r["provider"]): r["peak"] for r in rows if r.get("peak") is not None}
    found = []
    for (case, mode, provider), peak in peaks.items():
        floor = peaks.get((case, mode, "conv2d"))
        if provider in ("eager", "compiled") and floor is not None:
            extra = peak - floor
            row = {"case": case, "mode": f"{mode} memory", "provider": provider, "peer": "conv2d + 64 MiB"}
            found.append({**row, "limit": 1.0, "ratio": extra / MEMORY_BUDGET, "met": extra <= MEMORY_BUDGET})
    return found
