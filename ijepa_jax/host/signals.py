"""Ends that come from outside: requests to stop, noted until it suits, and a parent process that was killed."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator


def end_with_parent() -> None:
    """Has this worker process end when the one that started it is killed: it would wait for work for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None] | None = None, several_processes: bool = False) -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second SIGINT is not held back.

    `say` gets the name of the first at once, in a thread, also while the main one is held up in a compiler. With
    `several_processes`, SIGTERM is left to JAX's runtime, which tells the other processes, and SIGINT becomes SIGTERM.
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
    with _told(say) if before and say else contextlib.nullcontext():
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _told(say: Callable[[str], None]) -> Iterator[None]:
    """Has a thread `say` the name of the first signal that comes: handlers wait for the main thread's next instruction."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] in (signal.SIGTERM, signal.SIGINT):
                say(signal.Signals(number[0]).name)
                break

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        listener.join()
        os.close(reading)
