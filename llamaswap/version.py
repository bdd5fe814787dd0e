"""Which build this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from attrs import frozen


@frozen
class Build:
    """What `/api/version` and `--version` tell: strings, with the field's placeholders where nothing is known."""

    version: str
    commit: str = "abcd1234"
    build_date: str = "unknown"


def build() -> Build:
    """The installed distribution's version; "0" when run from a bare checkout."""
    try:
        return Build(version("llamaswap"))
    except PackageNotFoundError:
        return Build("0")


def describe() -> str:
    """One line for --version."""
    this = build()
    return f"version: {this.version} ({this.commit}), built at {this.build_date}"
