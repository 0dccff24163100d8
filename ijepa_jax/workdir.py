"""One run at a time in a workdir."""

import contextlib
import fcntl
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from ijepa_jax import processes

_LOCK, _OWNER = ".lock", "owner"


@contextlib.contextmanager
def claim(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Claims a workdir for this run; gives a function that raises ValueError if the run has lost it since.

    On a file system the claim is a lock, which ends with the process however that ends; a second run is refused (ValueError).
    Where there are no locks, as in object stores, the run that came last owns the workdir, and the one before stops before
    its next save. Neither clocks nor host names matter. The first of several processes claims for all.
    """
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


def _take_over(workdir: epath.Path) -> Callable[[], None]:
    token, owner = uuid.uuid4().hex, workdir / _OWNER
    if processes.is_first():
        owner.write_text(token)

    def check() -> None:
        mine = not processes.is_first() or owner.read_text() == token
        if not processes.all_succeeded(mine):
            raise ValueError(f"another run has taken over {workdir}: this one stops, and has not saved since")

    return check
