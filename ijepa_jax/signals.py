"""Being asked to stop: SIGTERM and SIGINT are noted, and whoever works looks at the note when it suits."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_requests() -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second SIGINT is not held back."""
    received: list[signal.Signals] = []

    def request(number, frame):
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, a notebook's for instance: nothing to catch there
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
