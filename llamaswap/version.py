"""Which build this is."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from attrs import frozen


@frozen
class Build:
    """What `/api/version` and `--version` tell: strings, with the field's placeholders where nothing is known."""

    version: str
    commit: str = "abcd1234"
    build_date: str = "unknown"

    @property
    def semantic_version(self) -> str:
        """The version as Semantic Versioning writes it: clients that compare versions know only its hyphen."""
        return re.sub(r"\.?(?=[a-z])", "-", self.version, count=1)


def build() -> Build:
    """The installed distribution's version; "0" when run from a bare checkout.

    Commit and date were written down when the distribution was built.
    """
    try:
        installed = version("llamaswap")
    except PackageNotFoundError:
        return Build("0")
    try:
        made = import_module("llamaswap._build")
    except ImportError:
        return Build(installed)
    commit, date = str(made.COMMIT or ""), str(made.DATE or "")
    return Build(
        installed,
        commit.removeprefix("g") or "abcd1234",
        date if date and date != "None" else "unknown",
    )


@cache
def running() -> Build:
    """The build that was installed when this was first called: an upgrade changes what is installed under a service."""
    return build()


def describe() -> str:
    """One line for --version."""
    this = build()
    return f"version: {this.version} ({this.commit}), built at {this.build_date}"
