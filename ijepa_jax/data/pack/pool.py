"""Writes shards in parallel, in processes that may be killed and a program that may be told to stop."""

import contextlib
import functools
import multiprocessing
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import sharedctypes

from ijepa_jax.data.pack.shards import Account, Cancelled, Packing, Shard, write_shard
from ijepa_jax.data.source import DataError
from ijepa_jax.host.console import Display
from ijepa_jax.host.signals import end_with_parent, stop_requests

_POLL_SECONDS = 0.2


class Stopped(Exception):
    """Packing ended before its time; the same call continues."""


def write_shards(
    packing: Packing, shards: Sequence[Shard], accounts: dict[Shard, Account],
    workers: int, max_bad_fraction: float, display: Display,
) -> None:  # fmt: skip
    """Writes the shards that have no account yet, and adds theirs.

    Raises `Stopped`; `DataError` if more than `max_bad_fraction` of a split is unreadable; OSError if a shard cannot be
    written.
    """
    _check_readable(packing, accounts, max_bad_fraction)
    todo = [shard for shard in shards if shard not in accounts]
    total = sum(shard.stop - shard.start for shard in shards)
    before = total - sum(shard.stop - shard.start for shard in todo)
    # Without locks, so that a killed worker cannot take one with it.
    progress, stop = sharedctypes.RawArray("q", len(shards)), sharedctypes.RawValue("b", 0)
    pending = {}
    display.start("packed", total, before, note="")
    started = time.monotonic()
    try:
        with stop_requests() as requests, _pool(workers, packing, progress, stop) as pool:
            with _children_spared_interrupts():
                pending |= {pool.submit(_work, position, shard): shard for position, shard in enumerate(todo)}
            while pending:
                ready, _ = futures.wait(pending, timeout=_POLL_SECONDS, return_when=futures.FIRST_COMPLETED)
                done = before + sum(progress)
                display.update(done, f"{(done - before) / (time.monotonic() - started):.0f} images/s")
                if requests:
                    raise Cancelled
                for future in ready:
                    accounts[pending[future]] = future.result()
                    del pending[future]
                if ready:
                    _check_readable(packing, accounts, max_bad_fraction)
    except (BrokenProcessPool, Cancelled) as error:
        reason = f"stopped by {requests[0].name}" if requests else "a worker process was killed (out of memory?)"
        raise Stopped(f"{reason}, {len(accounts)} of {len(shards)} shards are finished") from error
    finally:
        display.stop()
        whole = [future for future in pending if future.done() and not future.cancelled() and not future.exception()]
        accounts |= {pending[future]: future.result() for future in whole}


def _check_readable(packing: Packing, accounts: Mapping[Shard, Account], limit: float) -> None:
    """Raises DataError if too many images had to be skipped."""
    for split, source in packing.sources.items():
        skipped = [(shard, account["skipped"]) for shard, account in accounts.items() if shard.split == split]
        count = sum(len(files) for _, files in skipped)
        if count > limit * len(source):
            file, reason = next(files[0] for _, files in skipped if files)
            raise DataError(
                f"{count} of the {len(source)} images of the {split} split are unreadable, more than max_bad_fraction "
                f"{limit:g}: for example {file}: {reason}"
            )


@contextlib.contextmanager
def _pool(workers: int, packing: Packing, progress, stop) -> Iterator[futures.Executor]:
    """Executes `_work`, in processes or in a thread; at the end, tells what is still at work to give up."""
    arguments = (packing, progress, stop)
    if workers:
        spawn = multiprocessing.get_context("spawn")  # forks of a process with threads can hang
        pool = futures.ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_process, initargs=arguments)
    else:
        pool = futures.ThreadPoolExecutor(1, initializer=_start, initargs=arguments)
    try:
        yield pool
    finally:
        stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


_job = None  # of a worker: (packing, examples done by shard, whether to stop)


def _start(*job) -> None:
    global _job
    _job = job


def _start_process(*job) -> None:
    _start(*job)
    warnings.simplefilter("ignore")  # of Pillow, on damaged metadata of images that are good
    end_with_parent()


def _work(position: int, shard: Shard) -> Account:
    packing, progress, stop = _job
    return write_shard(packing, shard, functools.partial(progress.__setitem__, position), lambda: bool(stop.value))


@contextlib.contextmanager
def _children_spared_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C, which a terminal sends to all its processes, from those started in here: they are told to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
