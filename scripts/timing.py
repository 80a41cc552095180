"""The one clock for all comparisons: calls alternate, and the median counts."""

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

_log = logging.getLogger(__name__)
_SCATTERED = 3.0  # times between the quartiles


class Time(NamedTuple):
    """Milliseconds per call."""

    median: float
    quartiles: tuple[float, float]


def warn_if_scattered(times: Mapping[str, Time]) -> None:
    """Log a warning if the calls' times vary so much that the medians mean little."""
    name, time = max(times.items(), key=lambda item: item[1].quartiles[1] / item[1].quartiles[0])
    low, high = time.quartiles
    if high > _SCATTERED * low:
        _log.warning(
            "the times vary: half of those of %s lie between %.1f and %.1f ms. Other work runs on this machine; "
            "time it alone, or with OMP_NUM_THREADS=1",
            name,
            low,
            high,
        )


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu", seconds: float = 0.0
) -> dict[str, Time]:
    """Time calls alternately, after one warm-up round.

    Args:
        calls: The calls, by name.
        rounds: Rounds; the quartiles need 2 or more.
        device: Kind of the device, which is synchronised.
        seconds: How long each round repeats a call, at least once, so that short calls are measured as precisely as
            long ones.
    """
    once = {name: _time(call, 1, device) for name, call in calls.items()}
    repeats = {name: max(1, round(seconds / max(value, 1e-9))) for name, value in once.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            # The threads of the previous call may still spin, and the caches hold its data.
            time.sleep(0.01)
            if once[name] < 0.1:
                call()
            value = _time(call, repeats[name], device)
            if i:
                times[name].append(1000 * value)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Time:
    low, median, high = statistics.quantiles(values if len(values) > 1 else values * 2, n=4)
    return Time(median, (low, high))


def _time(call: Callable[[], object], repeats: int, device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return (time.perf_counter() - start) / repeats
