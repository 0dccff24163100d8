"""Account of unreadable images: each named once, all listed in a file, and too many of them stop the run."""

from collections.abc import Callable

import numpy as np
from etils import epath

from ijepa_jax.data.source import DataError, Source
from ijepa_jax.host.files import set_aside


class BadImages:
    """Counts what the `bad` rows of batches report.

    `path` lists every image that was ever found unreadable, a line each, also over restarts. The limit is a share of what this
    process has shown since it started, or of `count`, the images that fall to it in an epoch, as long as that is more: so
    a few bad ones at the start stop nothing, and neither restarts nor the number of processes change what is tolerated.
    """

    def __init__(self, path: epath.Path, count: float, limit: float, log: Callable[[str], None]):
        self._path = path
        self._count = count
        self._limit = limit
        self._log = log
        self._shown = self._bad = 0
        self.names = _listed(path, log)

    def account(self, source: Source, bad: np.ndarray) -> None:
        """Takes note of a batch's `bad` (examples of the source, or -1). Raises `DataError` when there are too many."""
        found = [source.name(int(index)) for index in bad if index >= 0]
        self._shown += len(bad)
        self._bad += len(found)
        if new := sorted({*found} - self.names):
            for name in new:
                self.names.add(name)
                self._log(f"skipped unreadable image {name} ({len(self.names)} so far)")
            self._path.write_text("".join(f"{name}\n" for name in sorted(self.names)))
        if found and self._bad > self._limit * max(self._shown, self._count):
            raise DataError(
                f"{self._bad} of {max(self._shown, round(self._count))} images are unreadable, more than "
                f"data.max_bad_fraction {self._limit:g}: for example {found[0]}; all are listed in {self._path}"
            )


def _listed(path: epath.Path, log: Callable[[str], None]) -> set[str]:
    """The names in a list; none where it is damaged, which stops nothing."""
    try:
        return set(path.read_bytes().decode().split("\n")) - {""} if path.exists() else set()
    except (OSError, UnicodeDecodeError):
        log(f"{path} is no list of names: set aside as {set_aside(path)}, unreadable images are listed anew")
        return set()
