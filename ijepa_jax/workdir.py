"""One run at a time in a workdir."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec.config
from etils import epath

from ijepa_jax import processes

_LOCK, _OWNER = ".lock", "owner"


def absolute(place: epath.PathLike) -> epath.Path:
    """A place from the root on, a local one's `~` expanded: a folder that the program changes to later makes no difference."""
    place = os.fspath(place)
    return epath.Path(place if "://" in place else Path(place).expanduser().absolute())


@contextlib.contextmanager
def claim(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Claims a workdir for this run; gives a function that raises ValueError if the run has lost it since.

    On a file system the claim is a lock, which ends with the process however that ends; a second run is refused (ValueError).
    Where there are no locks, as in object stores, the run that came last owns the workdir, and the one before stops before
    its next save. Neither clocks nor host names matter. The first of several processes claims for all.
    """
    # Other processes write there too: what a folder held a while ago, which gcsfs would go by, says nothing.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        free = True
        if processes.is_first() and "://" not in str(workdir):
            lock = stack.enter_context(Path(workdir, _LOCK).open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except OSError:  # a file system without locks: the owner's token has to do
                pass
        if not processes.all_succeeded(free):
            raise ValueError(f"another run is at work in {workdir}: stop it, or use another workdir")
        yield _take_over(workdir)


def owner(workdir: epath.Path) -> str:
    """What tells the run that owns a workdir from every other; empty if none ever claimed it."""
    path = workdir / _OWNER
    return path.read_text() if path.exists() else ""


def _take_over(workdir: epath.Path) -> Callable[[], None]:
    token = processes.gather_objects(uuid.uuid4().hex)[0]
    if processes.is_first():
        (workdir / _OWNER).write_text(token)
    processes.wait_for_all("workdir claimed")
    blind = [place for place, seen in processes.gather_objects([processes.place(), owner(workdir) == token]) if not seen]
    if blind:
        raise ValueError(f"{', '.join(blind)} does not see the workdir {workdir} of process 0: give one that all processes see")

    def check() -> None:
        mine = not processes.is_first() or owner(workdir) == token
        if not processes.all_succeeded(mine):
            raise ValueError(f"another run has taken over {workdir}: this one stops, and has not saved since")

    return check
