"""Downloads a file of the Hugging Face hub so that the next process can resume a download that was killed.

The hub's own client starts such a download again from the beginning. So the file is fetched here, beside its place and
under a name that the next process finds, and moved there when it is complete; the client then finds it done.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

BLOCK_SIZE = 4 * 1024 * 1024  # bytes read at a time
COPY_SIZE = 256 * 1024  # bytes of a download that are written at a time
READ_TIMEOUT = 60.0  # seconds between two pieces of the file
SHA256_LENGTH = 64  # of the etag of a large file; the hash of a small one is of another kind


# Called with the digest of the file, its size, and the bytes that are there.
Progress = Callable[[str, int, int], None]


def fetch(
    repository: str,
    file: str,
    revision: str | None,
    token: str | None,
    folder: Path | None,
    progress: Progress = lambda digest, size, there: None,
) -> None:
    """Make a file complete in the hub's cache, or in `folder`. Leaves a file alone that another process downloads.

    Raises what the hub's client raises for an unavailable file, and OSError.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented there

    url = hf_hub_url(repository, file, revision=revision)
    metadata = get_hf_file_metadata(url, token=token)
    if not metadata.etag or metadata.size is None:
        return
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    place = folder / file if folder else blobs / metadata.etag
    if place.exists():
        return
    location = metadata.location or url
    headers = build_hf_headers(token=token)
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a signed address of another host
    part = place.with_name(f"{metadata.etag}.resume.incomplete")
    part.parent.mkdir(parents=True, exist_ok=True)
    etag, size = metadata.etag, metadata.size
    if complete(part, size, etag, lambda sink: _download(location, headers, sink, partial(progress, etag, size))):
        os.replace(part, place)


def _download(location: str, headers: dict[str, str], sink: BinaryIO, progress: Callable[[int], None]) -> None:
    """Append what the file at `location` has beyond the length of `sink`."""
    there = sink.tell()
    request = Request(location, headers={**headers, "Range": f"bytes={there}-"} if there else headers)
    with urlopen(request, timeout=READ_TIMEOUT) as response:
        if there and response.status != 206:  # the whole file after all
            sink.truncate(0)
            sink.seek(0)
        while block := response.read(COPY_SIZE):
            sink.write(block)
            progress(sink.tell())


def complete(part: Path, size: int, etag: str, download: Callable[[BinaryIO], None]) -> bool:
    """Have `download` append what is missing of `size` bytes, again if its connection breaks; returns whether the file
    is complete.

    A file that another process writes is left alone. A resumed one is checked against `etag` if that is a SHA-256, and
    emptied if it does not match.
    """
    with part.open("ab") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process writes it, or the file system has no locks
            return False
        if sink.tell() > size:
            sink.truncate(0)
            sink.seek(0)
        resumed = sink.tell() > 0
        while (start := sink.tell()) < size:
            try:
                download(sink)
            except (OSError, HTTPException):
                if sink.tell() <= start:
                    raise
            sink.flush()
            if sink.tell() == start:
                raise OSError(f"the download stopped at {start} of {size} bytes; run the command again to resume it")
            resumed = resumed or sink.tell() < size
        matches = sink.tell() == size and (not resumed or _matches(part, etag))
        if not matches:
            sink.truncate(0)
        return matches


def _matches(part: Path, etag: str) -> bool:
    if len(etag) != SHA256_LENGTH:
        return True
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(BLOCK_SIZE):
            digest.update(block)
    return digest.hexdigest() == etag
