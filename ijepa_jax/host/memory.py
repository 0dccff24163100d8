"""How much memory there is."""

import re
from pathlib import Path


def available() -> int | None:
    """Bytes that a program may still take, as Linux estimates them; None where no one tells."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
