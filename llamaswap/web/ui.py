"""The web UI's files, and a plain page for installations without them.

Files are looked up under one folder, and no name leads outside it. A client that accepts it gets a file's compressed
sibling (`.br`, `.gz`).
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import quote

from attrs import define, evolve

from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.compress import accepts
from llamaswap.web.ollama import RUNNING
from llamaswap.web.route import Route, RouteTable

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)
SECURITY_HEADERS = (
    (b"Content-Security-Policy", POLICY.encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)
# The build puts a digest into these names (`app-5XJ2QK7A.js`): other content would have another name.
HASHED = re.compile(r"[-.][A-Z0-9]{8}\.[a-z0-9]+$|[-.][0-9a-f]{8,}\.[a-z0-9]+$")
IMMUTABLE = b"public, max-age=31536000, immutable"
CONTENT_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".ico": "image/x-icon",
    ".txt": "text/plain; charset=utf-8",
}
DEFAULT_CONTENT_TYPE = "application/octet-stream"
COMPRESSED_SIBLINGS = (("br", ".br"), ("gzip", ".gz"))
RANGE = re.compile(rb"bytes=(\d*)-(\d*)\Z")


HTML = "text/html"

route = RouteTable("ui", Route)


@define(eq=False)
class UiFiles:
    """/ui/ and the redirects to it. `root` is the folder of the built files; it may be missing.

    `for_ollama`: whether a request came to the address for Ollama's clients.
    """

    root: Path
    router: Router
    for_ollama: Callable[[AdminRequest], bool] = lambda call: False

    @route("GET", "/", key="not needed", content=HTML, status=302)
    def home(self, call: AdminRequest) -> Response:
        """Redirect to the UI; at the address for Ollama's clients the text that they look for."""
        if self.for_ollama(call):
            return RUNNING
        return redirect("/ui", 302, call.method)

    @route("GET", "/ui", key="not needed", content=HTML, status=307)
    def slash(self, call: AdminRequest) -> Response:
        """Redirect to the UI's folder, because its links are relative."""
        return redirect(call.with_query("/ui/"), 307, call.method)

    @route("GET", "/upstream", key="not needed", content=HTML, status=302)
    def models(self, call: AdminRequest) -> Response:
        """Redirect to the UI's page of models."""
        return redirect("/ui/models", 302, call.method)

    @route("POST PUT PATCH DELETE", "/upstream", changes_state=False, key="not needed", content=HTML, status=307)
    def upstream(self, call: AdminRequest) -> Response:
        """Redirect to the passthrough, which answers that no model is named."""
        return redirect(call.with_query("/upstream/"), 307, call.method)

    @route("GET", "/favicon.ico", key="not needed", content="image/x-icon")
    def icon(self, call: AdminRequest) -> Response:
        """The icon that browsers request."""
        return self._file("favicon.ico", call) or _missing()

    # No key: the files hold no secret, and the page itself asks for the key.
    @route("GET", "/ui/", key="not needed", content=HTML, summary="The UI")
    @route("GET", "/ui/<rest:name>", key="not needed", content=HTML)
    def file(self, call: AdminRequest) -> Response:
        """A file or page of the UI."""
        name = call.variables.get("name", "") or "index.html"
        found = self._file(name, call)
        # A name without a dot is a page, for which the UI's script reads the path. A model's id may have a dot.
        page = name.startswith("models/") or "." not in name.rsplit("/", 1)[-1] or name == "index.html"
        if found is None and not page:
            return _missing()
        found = found or self._page(call) or self._file("index.html", call) or self._plain_page()
        return evolve(found, headers=(*found.headers, *SECURITY_HEADERS))

    def _page(self, call: AdminRequest) -> Response | None:
        """The document for a page in a folder below /ui/, with its relative links adapted."""
        depth = call.path.partition("/ui/")[2].count("/")  # a browser does not count %2F
        path = self.root / "index.html"
        if not depth or not path.is_file():
            return None
        body = path.read_bytes().replace(b'"./', b'"' + b"../" * depth)
        return Response(200, body, b"text/html; charset=utf-8", ((b"Cache-Control", b"no-cache"),))

    def _file(self, name: str, call: AdminRequest) -> Response | None:
        parts = name.split("/")
        # A leading dot stands for ".." and hidden files; a NUL would make the calls below raise.
        if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
            return None
        path = self.root.joinpath(*parts)
        if not os.path.isfile(path):  # unlike Path.is_file it returns False for a name that is too long
            return None
        content_type = CONTENT_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or DEFAULT_CONTENT_TYPE
        siblings = {coding: path.with_name(path.name + suffix) for coding, suffix in COMPRESSED_SIBLINGS}
        offered = [coding for coding, sibling in siblings.items() if sibling.is_file()]
        coding = next((each for each in offered if accepts(call.first(b"accept-encoding"), each)), "")
        chosen = siblings[coding] if coding else path
        stat = chosen.stat()
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}{coding}"'.encode()
        headers = [(b"ETag", tag), (b"Cache-Control", IMMUTABLE if HASHED.search(path.name) else b"no-cache")]
        if offered:
            headers.append((b"Vary", b"Accept-Encoding"))
        if coding:
            headers.append((b"Content-Encoding", coding.encode()))
        if call.has_tag(b"if-none-match", tag):
            return Response(304, b"", None, tuple(headers))
        headers.append((b"Accept-Ranges", b"bytes"))
        whole = Response(200, chosen.read_bytes(), content_type.encode(), tuple(headers))
        return _part(whole, call.first(b"range"), call.first(b"if-range"), tag)

    def _plain_page(self) -> Response:
        rows = []
        for model in self.router.config.models.values():
            state = self.router.state(model.id)
            path = quote(model.id, safe="")
            load = f'<a href="/upstream/{quote(model.id)}/">load</a>'
            stop = (
                f'<form method="post" action="/api/models/unload/{path}"><button>unload</button></form>'
                if state != "stopped"
                else ""
            )
            rows.append(f"<tr><td>{escape(model.id)}<td>{escape(state)}<td>{load}<td>{stop}")
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>llamaswap</title>'
            "<h1>llamaswap</h1><p>The web UI is not part of this installation.</p>"
            "<table><tr><th>Model<th>State<th><th>"
            + "".join(rows)
            + '</table><p><a href="/logs/stream">Logs</a> <a href="/v1/models">Models as JSON</a> '
            '<a href="/api/openapi.json">API</a></p></html>\n'
        )
        return Response(200, page.encode(), b"text/html; charset=utf-8", ((b"Cache-Control", b"no-cache"),))


def _missing() -> Response:
    return Response(404, b"404 page not found\n", headers=((b"X-Content-Type-Options", b"nosniff"),))


def _part(whole: Response, asked: bytes | None, condition: bytes | None, tag: bytes) -> Response:
    """The requested range; the whole if several ranges are requested, or none that can be read."""
    found = RANGE.match(asked or b"")
    size = len(whole.body)
    if found is None or (condition is not None and condition != tag) or found.group(0) == b"bytes=-":
        return whole
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1 if last else size)
    if start >= stop:
        return Response(416, b"", None, ((b"Content-Range", b"bytes */%d" % size),))
    reach = b"bytes %d-%d/%d" % (start, stop - 1, size)
    return evolve(whole, status=206, body=whole.body[start:stop], headers=(*whole.headers, (b"Content-Range", reach)))
