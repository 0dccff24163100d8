"""How much memory there is."""

import re
from pathlib import Path


def available() -> int | None:
    """Bytes that a program may still take, by Linux's estimate and a container's limit; None where no one tells."""
    told = [_number("/proc/meminfo", r"^MemAvailable:\s+(\d+) kB", 1024), _in_container()]
    return min((bytes_ for bytes_ in told if bytes_ is not None), default=None)


def _in_container() -> int | None:
    limit, used = _number("/sys/fs/cgroup/memory.max", r"^(\d+)$"), _number("/sys/fs/cgroup/memory.stat", r"^anon (\d+)$")
    return None if limit is None or used is None else max(0, limit - used)


def _number(file: str, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * unit if found else None
