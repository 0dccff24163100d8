"""Ends that come from outside: requests to stop, noted until it suits, and a parent process that was killed."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


def end_with_parent() -> None:
    """Has this worker process end when the one that started it is killed: it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
