"""Checks of `apiKeys` that need more than the type of each value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.schema import Config
from llamaswap.config.schema.keys import HASHED, SCOPES, ApiKey, time_text
from llamaswap.errors import Problem

MAX_KEYS = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}\Z")


def check(config: Config, report: Diagnostics) -> None:
    """Report keys that cannot be used, and what is said twice."""
    keys = config.api_keys
    if len(keys) > MAX_KEYS:
        report.error(f"apiKeys has {len(keys)} entries, at most {MAX_KEYS} are possible", "apiKeys")
    names: dict[str, int] = {}
    digests: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        path = f"apiKeys[{index}]"
        _check_value(key, path, report)
        if key == ApiKey(key.key):
            continue  # a text, or a mapping that says no more than one
        _check_name(key, path, report)
        for scope in key.scopes:
            if scope not in SCOPES:
                hint = did_you_mean(scope, SCOPES)
                report.error(f"{path}: scope {scope!r} is none of {', '.join(SCOPES)}", f"{path}.scopes", hint=hint)
        if key.name:
            first = names.setdefault(key.name, index)
            if first != index:
                message = f"{path}: apiKeys[{first}] is called {key.name} too"
                report.error(message, f"{path}.name", hint="give each key its own name")
    for index, key in enumerate(keys):
        if _is_usable(key):
            first = digests.setdefault(key.digest, index)
            if first != index and (keys[first].name or key.name):
                message = f"apiKeys[{index}] is the same key as apiKeys[{first}]"
                report.error(message, f"apiKeys[{index}]", hint="remove one of them: a key has one name and one record")
    _warn_of_administrators(config, report)


def _is_usable(key: ApiKey) -> bool:
    return bool(key.value) and (not key.value.startswith(HASHED) or bool(_DIGEST.match(key.value)))


def _check_value(key: ApiKey, path: str, report: Diagnostics) -> None:
    if not key.value:
        report.error(f"{path}: empty api key", path, hint="remove the entry, or fill it")
    elif " " in key.value:
        report.error(f"{path}: an API key must not contain spaces", path)
    elif not _is_usable(key):
        hint = "llamaswap keys add makes one; by hand: printf %s KEY | sha256sum"
        report.error(f"{path}: behind sha256: there must be 64 hexadecimal digits", path, hint=hint)


def _check_name(key: ApiKey, path: str, report: Diagnostics) -> None:
    if not key.name:
        report.error(f"{path}: the key has no name", path, hint="add `name: ...`; activity and usage show it")
    elif not _NAME.match(key.name):
        hint = "use letters, digits and . _ @ -, at most 63"
        report.error(f"{path}: this cannot be the name of a key", f"{path}.name", hint=hint)
    elif key.plain and key.plain in key.name:
        report.error(f"{path}: the name contains the key, and names are shown", f"{path}.name", hint="choose another")


def _warn_of_administrators(config: Config, report: Diagnostics) -> None:
    if any(key.scopes for key in config.api_keys):
        if all(key.name and "admin" not in key.scopes for key in config.api_keys):
            report.warn(
                "no key has the scope admin: the page and the management API are closed",
                "apiKeys",
                hint="llamaswap keys add NAME --scope admin makes one; SIGHUP loads it",
            )
        return
    for index, key in enumerate(config.api_keys):
        if key.models or key.limited or key.ruled:
            report.warn(
                f"apiKeys[{index}]: {key.name} is limited, but may also change the configuration",
                f"apiKeys[{index}]",
                hint="add `scopes: [infer]` to it, and `scopes: [admin]` to yours",
            )


def check_models(config: Config, report: Diagnostics) -> None:
    """Warn of patterns that match no model."""
    if any(peer.auto for peer in config.peers.values()):
        return  # a peer's models are known when it has listed them
    known = set(_model_names(config))
    for index, key in enumerate(config.api_keys):
        for place, pattern in enumerate(key.models):
            if not any(fnmatchcase(name, pattern) for name in known):
                hint = did_you_mean(pattern, known)
                path = f"apiKeys[{index}].models[{place}]"
                report.warn(f"apiKeys[{index}]: no model is called {pattern}", path, hint=hint)


def _model_names(config: Config) -> Iterator[str]:
    yield from config.models
    yield from config.names.aliases
    yield from config.names.qualified
    yield from config.names.bare
    yield from config.names.sets
    yield from config.selectors
    for profile in config.profiles.values():
        yield from profile.pins
    for model in config.models.values():
        yield from model.filters.ids


def expired(config: Config, now: float) -> list[Problem]:
    """The keys that are not valid any more at `now`, in unix seconds."""
    return [
        Problem(
            f"apiKeys[{index}]: {key.name} has expired at {time_text(key.expires)}",
            f"apiKeys[{index}].expires",
            hint=f"llamaswap keys rotate {key.name} --expires ..., or llamaswap keys revoke {key.name}",
        )
        for index, key in enumerate(config.api_keys)
        if key.expires and key.expires <= now
    ]
