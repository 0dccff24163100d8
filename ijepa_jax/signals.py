"""Being asked to stop: SIGTERM and SIGINT are noted, and whoever works looks at the note when it suits."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_requests(several_processes: bool = False) -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second SIGINT is not held back.

    With `several_processes`, SIGTERM is left to JAX's runtime, which tells the other processes, and SIGINT becomes SIGTERM.
    """
    received: list[signal.Signals] = []

    def request(number, frame):
        del frame
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        if several_processes:
            os.kill(os.getpid(), signal.SIGTERM)

    caught = (signal.SIGINT,) if several_processes else (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, request) for number in caught}
    except ValueError:  # not the main thread, a notebook's for instance: nothing to catch there
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
