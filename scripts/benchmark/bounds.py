"""The operator's bounds on ratios of medians, met or missed."""

import fnmatch
from dataclasses import dataclass
from typing import Any

from .measure import Row


@dataclass(frozen=True, kw_only=True)
class Bound:
    """``provider`` takes at most ``limit`` times as long as ``peer``, in every case that matches ``cases``."""

    cases: tuple[str, ...]
    mode: str
    provider: str
    peer: str
    limit: float


def _beside_conv2d(cases: str, forward: float, training: float) -> list[Bound]:
    limits = {"forward": forward, "training": training}
    return [
        Bound(cases=tuple(cases.split()), mode=mode, provider=provider, peer="conv2d", limit=limit)
        for mode, limit in limits.items()
        for provider in ("eager", "compiled")
    ]


def _network(name: str, inference: float, training: float, composition: float = 1 / 1.9) -> list[Bound]:
    limits = {"inference": inference, "training": training}
    return [
        Bound(cases=(f"{name} *",), mode=mode, provider=f"dcn{way}", peer=f"plain{way}", limit=limit)
        for mode, limit in limits.items()
        for way in ("", " compiled")
    ] + [
        Bound(cases=(f"{name} *",), mode=mode, provider="dcn", peer="dcn composition", limit=composition)
        for mode in limits
    ]


# For machines with a C++ compiler. The names of half-precision cases have a suffix; no pattern here matches it.
BOUNDS = [
    *_beside_conv2d("*x256x??x?? *x512x??x??", 1.10, 1.00),
    *_beside_conv2d("*x128x*", 1.20, 1.00),
    *_beside_conv2d("*x64x*", 1.30, 1.05),
    *_beside_conv2d("*-g32", 1.30, 1.15),
    *_beside_conv2d("*x??-dw *-k5-dw", 2.2, 1.9),
    *_beside_conv2d("*-k7-dw", 2.6, 1.9),
    # Few pixels meet large filters: the composition's one large product is hard to beat.
    *(
        Bound(cases=("*x512x7x7",), mode=mode, provider="eager", peer="composition", limit=1.0)
        for mode in ("forward", "training")
    ),
    *(
        Bound(cases=("*",), mode="forward", provider="eager", peer=p, limit=1.0)
        for p in ("onnxruntime", "openvino")
    ),
    Bound(cases=("*-dw", "*-g*"), mode="forward", provider="eager", peer="torchvision", limit=1 / 4),
    Bound(cases=("*-dw", "*-g*"), mode="training", provider="eager", peer="torchvision", limit=1 / 8),
    *_network("mobilenetv3_large_100", 1.4, 1.4),
    *_network("efficientnet_b0", 1.3, 1.4),
    *_network("convnext_tiny", 1.25, 1.2),
    *_network("resnet50", 1.1, 1.1, composition=1 / 1.05),
]
# On a GPU: cuDNN's convolution and other libraries. A bfloat16 case is compared with torchvision's float16
# (``_gpu``).
_WIDE = ("*x256x*", "*x512x*")
GPU_BOUNDS = [
    Bound(cases=_WIDE, mode="forward", provider="eager", peer="conv2d", limit=2.0),
    Bound(cases=_WIDE, mode="training", provider="eager", peer="conv2d", limit=3.0),
    Bound(cases=_WIDE, mode="forward", provider="eager", peer="torchvision float16", limit=1 / 5),
    Bound(cases=_WIDE, mode="training", provider="eager", peer="torchvision float16", limit=1 / 4),
    Bound(cases=_WIDE, mode="forward", provider="eager", peer="deformops", limit=1 / 3),
    *(
        Bound(cases=("*",), mode=m, provider="eager", peer="torchvision", limit=1.0)
        for m in ("forward", "training")
    ),
]
GPU_MEMORY = 1.2  # times the plain convolution's peak
BEST_DEPLOYED = 1.25  # times the plain network, each in its fastest runtime
AGAINST_EAGER = 1.0  # compiled code must not be slower than eager
MEMORY_BUDGET = 16 * 2**20  # bytes beyond the plain convolution's peak


def verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Return every bound that the rows can judge, with its ratio and whether it is met."""
    measured = {(r["case"], r["mode"], r["provider"], r["threads"]): r["ms"] for r in rows if "ms" in r}
    found = []
    for (case, mode, provider, threads), value in measured.items():
        for bound in BOUNDS:
            peer = measured.get((case, mode, bound.peer, threads))
            if peer and (mode, provider) == (bound.mode, bound.provider) and _matches(case, bound):
                found.append(_verdict(case, mode, provider, bound.peer, bound.limit, value / peer))
    return found + _half(measured) + _deployed(rows) + _memory(rows)


def gpu_verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the bounds on a GPU: against the convolution, torchvision's float16, and deformops in bfloat16."""
    measured = {(r["case"], r["mode"], r["provider"]): r for r in rows if "ms" in r}
    found = []
    for (case, mode, provider), row in measured.items():
        half = case.endswith("-bfloat16")
        for bound in GPU_BOUNDS:
            wanted = half and "-g" not in case if bound.cases == _WIDE else "float16" not in case
            name, _, dtype = bound.peer.partition(" ")
            peer = measured.get((case.replace("bfloat16", dtype) if dtype else case, mode, name))
            if peer and wanted and (mode, provider) == (bound.mode, bound.provider) and _any(case, bound):
                found.append(_verdict(case, mode, provider, bound.peer, bound.limit, row["ms"] / peer["ms"]))
        floor = measured.get((case, mode, "conv2d"), {}).get("peak")
        if half and provider == "eager" and floor and row.get("peak"):
            found.append(_verdict(case, f"{mode} memory", provider, "conv2d", GPU_MEMORY, row["peak"] / floor))
    return found


def _verdict(case: str, mode: str, provider: str, peer: str, limit: float, ratio: float) -> dict[str, Any]:
    about = {"case": case, "mode": mode, "provider": provider, "peer": peer, "limit": limit}
    return {**about, "ratio": ratio, "met": ratio <= limit}


def _any(case: str, bound: Bound) -> bool:
    return any(fnmatch.fnmatch(case, pattern) for pattern in bound.cases)


def _matches(case: str, bound: Bound) -> bool:
    return not (bound.peer == "conv2d" and case.endswith("float16")) and _any(case, bound)


def _half(measured: dict[tuple[str, str, str, int], float]) -> list[dict[str, Any]]:
    """Bfloat16 is no slower than float32 of the same case, if both were measured."""
    found = []
    for (case, mode, provider, threads), value in measured.items():
        wide = measured.get((case.removesuffix("-bfloat16"), mode, provider, threads))
        if case.endswith("-bfloat16") and provider in ("eager", "compiled") and wide:
            found.append(_verdict(case, mode, provider, "float32", 1.0, value / wide))
    return found


def _deployed(rows: list[Row]) -> list[dict[str, Any]]:
    found = [
        _verdict(r["case"], "deployed", r["provider"], "eager", AGAINST_EAGER, r["against_eager"])
        for r in rows
        if "against_eager" in r
    ]
    for case in dict.fromkeys(r["case"] for r in rows if r["mode"] == "deployed"):
        times = {r["provider"]: r["ms"] for r in rows if r["case"] == case and r.get("ms")}
        plain, dcn = ({n: t for n, t in times.items() if n.startswith("plain ") == k} for k in (True, False))
        if plain and dcn and case.startswith("resnet50 "):
            best, floor = min(dcn, key=dcn.__getitem__), min(plain, key=plain.__getitem__)
            found.append(_verdict(case, "deployed", best, floor, BEST_DEPLOYED, dcn[best] / plain[floor]))
    return found


def _memory(rows: list[Row]) -> list[dict[str, Any]]:
    peaks = {(r["case"], r["mode"], r["provider"]): r["peak"] for r in rows if r.get("peak") is not None}
    found = []
    for (case, mode, provider), peak in peaks.items():
        floor = peaks.get((case, mode, "conv2d"))
        if provider in ("eager", "compiled") and floor is not None:
            extra = (peak - floor) / MEMORY_BUDGET
            found.append(_verdict(case, f"{mode} memory", provider, "conv2d + 16 MiB", 1.0, extra))
    return found
