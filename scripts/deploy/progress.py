"""Progress messages for work that takes minutes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stage(what: str, every: float = 30.0) -> Iterator[None]:
    """Print what is being done and, every ``every`` seconds, for how long."""
    start, done = time.monotonic(), threading.Event()

    def remind() -> None:
        while not done.wait(every):
            print(f"{what}: {time.monotonic() - start:.0f} s so far", flush=True)

    print(f"{what} ...", flush=True)
    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
