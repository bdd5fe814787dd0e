"""Writes a loaded configuration as YAML: macros expanded, ports assigned, defaults filled in, secrets masked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import yaml
from attrs import AttrsInstance, fields

from llamaswap.config import ApiKey, Config, Model, Secret
from llamaswap.config import command_line as command_text
from llamaswap.config.field_types import (
    DURATION,
    SECONDS,
    TEXT_PAIRS,
    SectionMapType,
    SectionType,
    ValueType,
    keys_of,
)
from llamaswap.config.policies.groups import DEFAULT_GROUP
from llamaswap.web.secret_masking import MASK, known_secrets, masked_command, masked_text, names_text_tokens

LEGACY_KEYS = {"groups", "matrix"}  # `routing` has the same settings
SECRET_NAME = re.compile(r"(api[-_]?key|token|secret|passw(or)?d|credential|authorization|auth[-_]?key)", re.IGNORECASE)


def plain(config: Config) -> dict[str, object]:
    """The configuration as a document of the file format, without empty and unset values."""
    document = _record(config, known_secrets(config))
    return {name: value for name, value in document.items() if name not in LEGACY_KEYS}


def text(config: Config) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=10_000)


def _record(record: AttrsInstance, known: list[str]) -> dict[str, object]:
    document: dict[str, object] = {}
    for name, (attribute, key) in keys_of(type(record)).items():
        if name == "macros":
            continue  # expanded already
        value = _value(getattr(record, attribute.name), key.kind, name, known)
        if value is not None and value != "" and value != [] and value != {}:
            document[name] = value
    if getattr(record, "auto", False) and any(attribute.name == "auto" for attribute in fields(type(record))):
        document["models"] = "auto"
    return document


def _without_port(record: AttrsInstance, document: dict[str, object]) -> dict[str, object]:
    """The document of a model with replicas has ${PORT} again, because each server gets another port."""
    if not isinstance(record, Model) or record.replicas < 2:
        return document
    port = re.compile(rf"(?<![0-9]){record.port}(?![0-9])")

    def restored(value: object) -> object:
        if isinstance(value, str):
            return port.sub("${PORT}", value)
        if isinstance(value, dict):
            return {key: restored(inner) for key, inner in value.items()}
        return [restored(inner) for inner in value] if isinstance(value, list) else value

    return {key: restored(value) for key, value in document.items()}


def _value(value: object, kind: ValueType[Any] | SectionType | SectionMapType, name: str, known: list[str]) -> object:
    if value is None:
        return None
    if isinstance(kind, SectionType) and kind.many:
        keys = cast(tuple[ApiKey, ...], value)
        return [MASK if key == ApiKey(key.key) else _record(key, known) for key in keys]
    if isinstance(kind, SectionType):
        return _record(cast(AttrsInstance, value), known)
    if isinstance(kind, SectionMapType):
        records = cast(Mapping[str, AttrsInstance], value)
        shown = {key: record for key, record in records.items() if not getattr(record, "replica_of", "")}
        return {
            key: _without_port(record, _record(record, known)) for key, record in shown.items() if key != DEFAULT_GROUP
        }
    value = kind.write(value)
    if kind in (DURATION, SECONDS, TEXT_PAIRS):
        return value
    if name in ("cmd", "cmdStop"):
        return _command(cast(str, value), known)
    if name == "env":
        return [_assignment(entry, known) for entry in cast(list[str], value)]
    return _masked(value, known, name)


def _command(value: str, known: list[str]) -> str:
    """The command's words, each quoted so that it is parsed as the same word again."""
    try:
        words = masked_command(command_text.split(value), known)
    except command_text.EmptyCommand:
        return ""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./${}-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _assignment(entry: str, known: list[str]) -> str:
    name, equals, value = entry.partition("=")
    return f"{name}{equals}{MASK}" if _is_secret(name) else masked_text(entry, known) if value else entry


def _is_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name)) and not names_text_tokens(name)


def _masked(value: object, known: list[str], name: str = "") -> object:
    """Plain data without secrets, free-form values included."""
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Mapping):
        return {key: _masked(inner, known, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner, known) for inner in value]
    if isinstance(value, str):
        return MASK if _is_secret(name) else masked_text(value, known)
    return value
