"""The cache in which Hugging Face's programs, and engines that use them, keep what they downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def hub_folder(home: Path, environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"])
    root = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface"
    return Path(root) / "hub"


def newest_snapshot(repository: Path) -> Path | None:
    """The snapshot of the branch main, else the newest one."""
    snapshots = repository / "snapshots"
    with suppress(OSError):
        revision = (repository / "refs/main").read_text(encoding="utf-8").strip()
        if revision and (snapshots / revision).is_dir():
            return snapshots / revision
    with suppress(OSError):
        return max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)
    return None


def repository(hub: Path, name: str) -> Path:
    """The folder of a repository such as `org/model`."""
    return hub / f"models--{name.replace('/', '--')}"
