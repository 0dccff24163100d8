"""Stand-ins for gs:// and s3:// over a local folder: for epath, which goes through fsspec, and for array_record, by HTTP."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry as filesystems

from tests import gcs


@contextlib.contextmanager
def mounted(folder: Path, monkeypatch) -> Iterator[None]:
    """Has gs://BUCKET/KEY and s3://BUCKET/KEY mean folder/BUCKET/KEY, and array_record read gs:// from there too."""

    class Store(DirFileSystem):
        def __init__(self, **options):
            super().__init__(path=str(folder), fs=LocalFileSystem(auto_mkdir=True))

        def mkdir(self, path, *arguments, **options):
            """Object stores have no folders of their own."""

        def makedirs(self, path, exist_ok=False):
            """Object stores have no folders of their own."""

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).partition("://")[2] if "://" in str(path) else str(path)

    for protocol in ("gcs", "s3"):
        monkeypatch.setitem(filesystems, protocol, Store)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    try:
        with gcs.serve(_Files(folder)) as url:
            monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", url)
            yield
    finally:
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()


class _Files(dict):
    """The files of a folder as objects."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def __getitem__(self, name: str) -> gcs.Object:
        return gcs.Object((self._folder / name).read_bytes())
