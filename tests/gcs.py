"""A stand-in for Google Cloud Storage: the part of its JSON API that gcsfs, tensorstore and array_record use, in memory."""

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, MutableMapping
from http import server

_GENERATIONS = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Object:
    data: bytes
    generation: int = dataclasses.field(default_factory=lambda: next(_GENERATIONS))


Objects = MutableMapping[str, Object]  # by BUCKET/KEY


@contextlib.contextmanager
def serve(objects: Objects, before_write: Callable[[str], None] = lambda name: None) -> Iterator[str]:
    """Serves objects; gives the URL. `before_write` is called with each BUCKET/KEY before it is written, and may wait."""

    class Handler(_Handler):
        store, uploads, lock = objects, {}, threading.Lock()

        def wait(self, name):
            before_write(name)

    http = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


def environment(url: str) -> dict[str, str]:
    """What makes a process use the server at `url`: tensorstore, gcsfs and Google's own library, without credentials."""
    return {
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "STORAGE_EMULATOR_HOST": url,
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the kind of bucket by gRPC, which is not served here
    }


class _Server(server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Says nothing of connections that a killed process leaves behind."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Failure(Exception):
    """An HTTP status."""


class _Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body go out together

    def answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        self.query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        path = url.path.partition("/storage/v1/b/")[2]
        bucket, _, rest = path.partition("/")
        self.bucket, self.key = urllib.parse.unquote(bucket), urllib.parse.unquote(rest.removeprefix("o").removeprefix("/"))
        self.name = f"{self.bucket}/{self.key}"
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, data, headers = {"GET": self.get, "DELETE": self.delete}.get(self.command, self.post)()
        except _Failure as failure:
            status, data, headers = failure.args[0], b"", {}
        data = json.dumps(data).encode() if isinstance(data, dict) else data
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def get(self) -> tuple[int, bytes | dict, dict]:
        if not self.key:
            return 200, self.listing() if re.search("/o$", urllib.parse.urlsplit(self.path).path) else {"name": self.bucket}, {}
        found = self.find(self.name)
        if self.query.get("ifGenerationNotMatch") == str(found.generation):
            raise _Failure(304)
        if self.query.get("alt") != "media":
            return 200, self.described(self.name, found), {}
        size = len(found.data)
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if start >= size > 0:
            raise _Failure(416)
        partial = "Range" in self.headers
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if partial else {}
        return 206 if partial else 200, found.data[start:stop], {**headers, "X-Goog-Generation": str(found.generation)}

    def post(self) -> tuple[int, dict, dict]:
        kind = self.query.get("uploadType")
        if "upload_id" in self.query:
            return self.chunk(self.query["upload_id"])
        if kind == "resumable":
            name, upload = json.loads(self.body or b"{}").get("name") or self.query["name"], str(next(_GENERATIONS))
            self.uploads[upload] = f"{self.bucket}/{name}", self.query.get("ifGenerationMatch"), bytearray()
            host = f"http://{self.headers['Host']}"
            return 200, {}, {"Location": f"{host}/upload/storage/v1/b/{self.bucket}/o?upload_id={upload}"}
        if kind == "multipart":
            boundary = re.search('boundary="?([^"]+)', self.headers["Content-Type"])[1].encode()
            head, data = (part.split(b"\n\n", 1)[1] for part in self.body.split(b"--" + boundary, 2)[1:])
            return (
                200,
                self.write(f"{self.bucket}/{json.loads(head)['name']}", data.removesuffix(b"\n--" + boundary + b"--")),
                {},
            )
        if kind == "media":
            return 200, self.write(f"{self.bucket}/{self.query['name']}", self.body), {}
        source, bucket, key = re.fullmatch("(.+)/(?:rewriteTo/b/([^/]+)/o|moveTo/o)/(.+)", self.key).groups()
        resource = self.write(f"{bucket or self.bucket}/{key}", self.find(f"{self.bucket}/{source}").data)
        if not bucket:
            del self.store[f"{self.bucket}/{source}"]
            return 200, resource, {}
        return 200, {"kind": "storage#rewriteResponse", "done": True, "resource": resource}, {}

    def chunk(self, upload: str) -> tuple[int, bytes | dict, dict]:
        name, condition, data = self.uploads[upload]
        data += self.body
        if self.headers["Content-Range"].endswith("/*"):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"}
        return 200, self.write(name, bytes(self.uploads.pop(upload)[2]), condition), {}

    def delete(self) -> tuple[int, bytes, dict]:
        with self.lock:
            self.check(self.name, self.query.get("ifGenerationMatch"))
            self.find(self.name)
            del self.store[self.name]
        return 204, b"", {}

    def write(self, name: str, data: bytes, condition: str | None = None) -> dict:
        self.wait(name)
        with self.lock:
            self.check(name, condition or self.query.get("ifGenerationMatch"))
            self.store[name] = written = Object(data)
        return self.described(name, written)

    def check(self, name: str, condition: str | None) -> None:
        if condition not in (None, str(self.store[name].generation if name in self.store else 0)):
            raise _Failure(412)

    def find(self, name: str) -> Object:
        if name not in self.store:
            raise _Failure(404)
        return self.store[name]

    def listing(self) -> dict:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        start, stop = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, prefixes, most = [], [], int(self.query.get("maxResults", 1000))
        for name in sorted(self.store):
            bucket, _, key = name.partition("/")
            if bucket != self.bucket or not key.startswith(prefix) or key < start or (stop and key >= stop):
                continue
            folder, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            entry = prefix + folder + cut if cut else key
            if entry <= self.query.get("pageToken", "") or entry in prefixes:
                continue
            if len(items) + len(prefixes) == most:
                return {
                    "items": items,
                    "prefixes": prefixes,
                    "nextPageToken": max(prefixes[-1:] + [item["name"] for item in items]),
                }
            prefixes.append(entry) if cut else items.append(self.described(name, self.store[name]))
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}

    def described(self, name: str, found: Object) -> dict:
        bucket, _, key = name.partition("/")
        return {
            "kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(found.data)),
            "generation": str(found.generation), "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(found.data).digest()).decode(),
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def log_message(self, *arguments):
        """Says nothing."""
