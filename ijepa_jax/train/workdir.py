"""A workdir: one run at a time in it, and what lies in that run's way."""

import contextlib
import fcntl
import fnmatch
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec.config
from etils import epath

from ijepa_jax.devices import processes
from ijepa_jax.host.errors import one_line
from ijepa_jax.host.files import ASIDE, set_aside, write_whole

_LOCK, _OWNER = ".lock", "owner"
# What a run writes for people to look at, by what it must be.
_FOLDERS = ("tensorboard", "report")
_FILES = (_OWNER, "config.json", "metrics.jsonl", "wandb_id", "bad_images*.txt", "report/report.*", "report/*.png")


@contextlib.contextmanager
def claim(workdir: epath.Path, log: Callable[[str], None] = lambda line: None) -> Iterator[Callable[[], None]]:
    """Claims a workdir for this run; gives a function that raises ValueError if the run has lost it since.

    On a file system the claim is a lock, which ends with the process however that ends; a second run is refused (ValueError).
    Where there are no locks, as in object stores, the run that came last owns the workdir, and the one before stops before
    its next save. Neither clocks nor host names matter. The first of several processes claims for all.

    What lies where the run will write files to look at, and is no file (or no folder), is set aside: `log` gets a line each.
    """
    # Other processes write there too: what a folder held a while ago, which gcsfs would go by, says nothing.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # object stores' libraries have exceptions of their own
        if "://" not in str(workdir):
            raise
        raise OSError(f"cannot use {workdir}: {one_line(error)}") from error
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
        if processes.is_first() and "://" not in str(workdir):
            _make_way(Path(workdir), log)
        yield _take_over(workdir)


def _make_way(workdir: Path, log: Callable[[str], None]) -> None:
    for path in (*workdir.glob("*"), *workdir.glob("report/*")):  # by wildcards, which also find links to nothing
        name = str(path.relative_to(workdir))
        if path.name.startswith(ASIDE):
            continue
        if not path.is_dir() and name in _FOLDERS:
            log(f"{path} is no folder: set aside as {set_aside(path)}")
        elif not path.is_file() and any(fnmatch.fnmatch(name, wanted) for wanted in _FILES):
            log(f"{path} is no file: set aside as {set_aside(path)}")


def owner(workdir: epath.Path) -> str:
    """What tells the run that owns a workdir from every other; empty if none ever claimed it."""
    path = workdir / _OWNER
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def _take_over(workdir: epath.Path) -> Callable[[], None]:
    token = processes.gather_objects(uuid.uuid4().hex)[0]
    if processes.is_first():
        write_whole(workdir / _OWNER, token)
    processes.wait_for_all("workdir claimed")
    blind = [place for place, seen in processes.gather_objects([processes.place(), owner(workdir) == token]) if not seen]
    if blind:
        raise ValueError(f"{', '.join(blind)} does not see the workdir {workdir} of process 0: give one that all processes see")

    def check() -> None:
        mine = not processes.is_first() or owner(workdir) == token
        if not processes.all_succeeded(mine):
            raise ValueError(f"another run has taken over {workdir}: this one stops, and has not saved since")

    return check
