"""Requests to stop: noted, answered at once, and held back no longer than one."""

import os
import signal
import threading
import time

import pytest

from ijepa_jax.host.signals import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_is_noted_and_told_at_once_also_while_the_main_thread_is_held_up(number):
    told, seen = [], threading.Event()

    def say(name):
        told.append(name)
        seen.set()

    before = signal.getsignal(number)
    with stop_requests(say) as requests:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        assert seen.wait(10)  # of a thread: nothing of the main one's
        deadline = time.monotonic() + 10
        while not requests and time.monotonic() < deadline:
            time.sleep(0.01)
        assert requests == [number] and told == [number.name]
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests == [number, signal.SIGTERM] and told == [number.name]
    assert signal.getsignal(number) is before


def test_a_second_interrupt_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), stop_requests():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_nothing_is_told_where_nothing_came():
    told, threads = [], threading.active_count()
    with stop_requests(told.append) as requests:
        pass
    assert not told and not requests and threading.active_count() == threads
