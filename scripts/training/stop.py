"""SIGTERM and Ctrl-C make a run stop after the current step, with its state saved."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stopped(Exception):
    """A run stopped on request; its state is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequest:
    """While entered, a signal is stored in ``signum``; a second Ctrl-C interrupts at once.

    A second SIGTERM does not: launchers forward Ctrl-C as SIGTERM to workers that have already got the Ctrl-C.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signum = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
