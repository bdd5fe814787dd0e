"""A file of a model hub fetched so that a killed download is taken up by the next one.

The hub's own client does so for connections that break, but begins anew in another process. So a file is fetched here
beside its place, under a name that the next process finds again, and put there when it is whole; the client then finds
it done. Whatever goes wrong is left to the client, which says it better.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK = 4 * 1024 * 1024  # bytes read at a time


def fetch(repository: str, file: str, revision: str | None, token: str | None, folder: Path | None) -> None:
    """Have a file complete where the hub's client looks for it: in its cache, or in `folder`.

    Raises what its client raises for a file that is unavailable, OSError for a disk that takes no more.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, file, revision=revision)
    facts = get_hf_file_metadata(url, token=token)
    if not facts.etag or facts.size is None:
        return
    if folder is None:
        cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
        place = cached / "blobs" / facts.etag
    else:
        place = folder / file
    if place.exists():
        return
    location = facts.location or url
    headers = build_hf_headers(token=token)
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the file lies elsewhere, and the address says who may have it
    part = place.with_name(f"{facts.etag}.resume.incomplete")
    part.parent.mkdir(parents=True, exist_ok=True)

    def more(sink: Any, there: int) -> None:
        http_get(location, sink, resume_size=there, headers=headers, expected_size=facts.size, displayed_filename=file)

    if complete(part, facts.size, facts.etag, more):
        os.replace(part, place)


def complete(part: Path, size: int, etag: str, more: Callable[[Any, int], None]) -> bool:
    """Fetch what is missing of `size` bytes with `more(file, bytes there)`; False where another process is at it.

    What was taken up is checked against `etag` where that is a SHA-256, and thrown away if it does not fit.
    """
    with part.open("ab") as sink:
        if not _ours_alone(sink):
            return False
        there = sink.tell()
        if there > size:
            sink.truncate(0)
            there = 0
        if there < size:
            more(sink, there)
            sink.flush()
        fits = sink.tell() == size and (not there or _fits(part, etag))
        if not fits:
            sink.truncate(0)
        return fits


def _ours_alone(sink: Any) -> bool:
    """Whether no other process writes to it. Where that cannot be known, the client's own way is taken."""
    try:
        import fcntl

        fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def _fits(part: Path, etag: str) -> bool:
    if len(etag) != 64:
        return True  # small files have a hash of another kind; their size is right
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest() == etag
