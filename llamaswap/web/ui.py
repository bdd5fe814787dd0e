"""The web UI's files, and a plain page for installations that have none.

Files are looked up under one folder; nothing outside it can be named. Their packed siblings (`.br`, `.gz`) are
sent to clients that take them.
"""

from __future__ import annotations

import mimetypes
import os
import re
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import define, evolve

from llamaswap.routing.router import Router
from llamaswap.web.admin_request import AdminRequest, Response, redirect
from llamaswap.web.compress import accepts
from llamaswap.web.route import RouteTable

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; object-src 'none'"
)
SAFETY = (
    (b"Content-Security-Policy", POLICY.encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)
# The build puts a digest into these names (`app-5XJ2QK7A.js`): other content would have another name.
HASHED = re.compile(r"[-.][A-Z0-9]{8}\.[a-z0-9]+$|[-.][0-9a-f]{8,}\.[a-z0-9]+$")
FOREVER = b"public, max-age=31536000, immutable"
TYPES = {
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
PACKED = (("br", ".br"), ("gzip", ".gz"))
RANGE = re.compile(rb"bytes=(\d*)-(\d*)\Z")


@define(eq=False)
class UiFiles:
    """/ui/ and the redirects to it. `root` is the folder of the built files; it may be missing."""

    root: Path
    router: Router

    def home(self, call: AdminRequest) -> Response:
        """The root goes to the UI."""
        return redirect("/ui", 302, call.method)

    def slash(self, call: AdminRequest) -> Response:
        """The UI lives in a folder: relative links need the slash."""
        return redirect(_with_query("/ui/", call), 307, call.method)

    def models(self, call: AdminRequest) -> Response:
        """A bare /upstream shows the models there are."""
        return redirect("/ui/models", 302, call.method)

    def upstream(self, call: AdminRequest) -> Response:
        """Any other method on a bare /upstream goes to the passthrough, which says that no model is named."""
        return redirect(_with_query("/upstream/", call), 307, call.method)

    def icon(self, call: AdminRequest) -> Response:
        """The icon browsers ask for."""
        return self._file("favicon.ico", call) or _missing()

    def file(self, call: AdminRequest) -> Response:
        """A file; a name without a dot is a page of the UI, which finds its way itself."""
        name = call.variables.get("name", "") or "index.html"
        found = self._file(name, call)
        # An id of a model may have a dot; anything else with one is a file.
        page = name.startswith("models/") or "." not in name.rsplit("/", 1)[-1] or name == "index.html"
        if found is None and not page:
            return _missing()
        found = found or self._page(call) or self._file("index.html", call) or self._plain_page()
        return evolve(found, headers=(*found.headers, *SAFETY))

    def _page(self, call: AdminRequest) -> Response | None:
        """The document for a page some folders down: its links are relative, so they have to climb."""
        depth = call.path.partition("/ui/")[2].count("/")  # as the browser counts: %2F is no folder
        path = self.root / "index.html"
        if not depth or not path.is_file():
            return None
        body = path.read_bytes().replace(b'"./', b'"' + b"../" * depth)
        return Response(200, body, b"text/html; charset=utf-8", ((b"Cache-Control", b"no-cache"),))

    def _file(self, name: str, call: AdminRequest) -> Response | None:
        parts = name.split("/")
        # A leading dot covers "..", and keeps hidden files hidden; a NUL makes the filesystem calls raise.
        if any(not part or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
            return None
        path = self.root.joinpath(*parts)
        if not os.path.isfile(path):  # unlike the path's own method it takes a name that is too long
            return None
        content_type = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers: list[tuple[bytes, bytes]] = []
        chosen, coding = path, ""
        for offered, suffix in PACKED:
            sibling = path.with_name(path.name + suffix)
            if sibling.is_file():
                if not headers:
                    headers.append((b"Vary", b"Accept-Encoding"))
                if not coding and accepts(call.first(b"accept-encoding"), offered):
                    chosen, coding = sibling, offered
        if coding:
            headers.append((b"Content-Encoding", coding.encode()))
        stat = chosen.stat()
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}{coding}"'.encode()
        headers.append((b"ETag", tag))
        headers.append((b"Cache-Control", FOREVER if HASHED.search(path.name) else b"no-cache"))
        if _matches(call.first(b"if-none-match"), tag):
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


def _with_query(path: str, call: AdminRequest) -> str:
    return f"{path}?{call.query_string}" if call.query_string else path


def _matches(asked: bytes | None, tag: bytes) -> bool:
    if asked is None:
        return False
    return asked.strip() == b"*" or tag in (item.strip().removeprefix(b"W/") for item in asked.split(b","))


def _part(whole: Response, asked: bytes | None, condition: bytes | None, tag: bytes) -> Response:
    """The one range asked for; several, or one that cannot be read, get the whole."""
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


_table = RouteTable(UiFiles, "ui")
_page: dict[str, Any] = {"content": "text/html"}
_NOT_GET = ("POST", "PUT", "PATCH", "DELETE")
ROUTES = (
    _table.get("/", UiFiles.home, "To the UI", open=True, status=302, **_page),
    _table.get("/ui", UiFiles.slash, "To the UI", open=True, status=307, **_page),
    # Open: the files hold no secret, and the page asks for the key itself, in words, where a browser's prompt has none.
    _table.get("/ui/", UiFiles.file, "The UI", open=True, **_page),
    _table.get("/ui/<rest:name>", UiFiles.file, "A file or page of the UI", open=True, **_page),
    _table.get("/favicon.ico", UiFiles.icon, "The icon", open=True, content="image/x-icon"),
    _table.get("/upstream", UiFiles.models, "To the models page", open=True, status=302, **_page),
    _table.each(
        _NOT_GET,
        "/upstream",
        UiFiles.upstream,
        "To the passthrough",
        changes_state=False,
        open=True,
        status=307,
        **_page,
    ),
)
