"""Settings as nested dicts of JSON types, and by dotted keys."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their dotted keys."""
    for key, entry in settings.items():
        if isinstance(entry, Mapping):
            yield from flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def flatten(config: Any) -> dict[str, Any]:
    """All settings by their dotted keys, as JSON types."""
    return dict(flat(to_plain(config)))


def to_plain(config: Any) -> dict[str, Any]:
    """The settings as nested dicts of JSON types."""
    return _plain(config.to_dict())


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two plain settings: {key: (old value, new value)}."""
    old, new = dict(flat(old)), dict(flat(new))
    return {key: (old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value
