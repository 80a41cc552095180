"""FLOPs by part of a network, read from torch's counter where a part begins and ends."""

from collections import Counter
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class PartFlops:
    """Gives the FLOPs that a counter counts to the part whose module runs.

    Args:
        counter: Counts while the network runs.
        part: The part of what runs outside of all modules with hooks.
    """

    def __init__(self, counter: FlopCounterMode, part: str) -> None:
        self._counter = counter
        self._running = [part]
        self._given = 0
        self._flops: Counter[str] = Counter()

    def hooks(self, module: nn.Module, part: str) -> list[Any]:
        """Make a module count for a part; returns the handles of its hooks."""

        def enter(*_: Any) -> None:
            self._give()
            self._running.append(part)

        def leave(*_: Any) -> None:
            self._give()
            self._running.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def finish(self) -> dict[str, int]:
        """Return the FLOPs of each part, once the network has run."""
        self._give()
        return dict(self._flops)

    def _give(self) -> None:
        total = self._counter.get_total_flops()
        self._flops[self._running[-1]] += total - self._given
        self._given = total
