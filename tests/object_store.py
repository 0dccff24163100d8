"""Stand-ins for gs:// and s3:// over a local folder: for epath, which goes through fsspec, and for array_record, by HTTP."""

import contextlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http import server
from pathlib import Path

from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry as filesystems


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
    http = server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{http.server_address[1]}")
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        http.shutdown()
        http.server_close()
        backend._FileSystemSpecBackend._get_filesystem.cache_clear()


def _handler(folder: Path) -> type[server.BaseHTTPRequestHandler]:
    class Handler(server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            bucket, key = re.search(r"/b/([^/]+)/o/([^?]+)", self.path).groups()
            file = folder / bucket / urllib.parse.unquote(key)
            data = file.read_bytes() if file.is_file() else b""
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(len(data), int(last) + 1) if first and last else len(data)
            self.send_response(206 if file.is_file() else 404)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(data[start:stop])

        def log_message(self, *arguments):
            """Says nothing."""

    return Handler
