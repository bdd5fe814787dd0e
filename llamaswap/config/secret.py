"""Texts such as API keys that must not be printed."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class Secret:
    """A text that must not reach a log: ask for `value` to use it, print the object otherwise."""

    value: str = field(repr=lambda _: "***")

    def __str__(self) -> str:
        return "***"
