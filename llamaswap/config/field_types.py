"""What a field of a record is called in YAML and what may stand there.

Records in `schema` carry one `Key` per YAML key; `decode` reads documents by them and `jsonschema` describes
them to editors, so neither can drift from the records. Knows nothing of YAML itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Attribute, Factory, fields, frozen


@frozen
class TextType:
    """A string; any scalar is taken as it was written. `secret`: its value never appears in a message."""

    secret: bool = False


@frozen
class IntegerType:
    """A whole number; a float is cut towards zero."""


@frozen
class SecondsType:
    """A whole number of seconds, held as float."""


@frozen
class BooleanType:
    """true/false, or one of the old words yes/no/on/off/y/n. `optional`: null means None."""

    optional: bool = False


@frozen
class DurationType:
    """Text such as 1m30s; held as float seconds."""


@frozen
class TextListType:
    """A list of strings; null entries drop out.

    `strict`: a null entry is refused, since dropping it would do harm. `auto`: the word auto may stand instead and
    is read as None. `single`: one text may stand for a list of it.
    """

    secret: bool = False
    strict: bool = False
    auto: bool = False
    single: bool = False


@frozen
class PatternsType:
    """A list of RE2 expressions; an empty one leaves the field's default."""


@frozen
class TextMapType:
    """A mapping to strings; null is the empty string."""


@frozen
class TextPairsType:
    """A mapping to strings whose order counts: a tuple of pairs."""


@frozen
class IntegerMapType:
    """A mapping to whole numbers; null is 0."""


@frozen
class FreeType:
    """A mapping to anything JSON can say."""


@frozen
class FreeMapsType:
    """A mapping to mappings to anything JSON can say."""


@frozen
class MacrosType:
    """A mapping of macro names to scalars whose order counts."""


@frozen
class SectionType:
    """A nested record; null (and absence) leave the field's default. `synonyms`: whether old key names count here."""

    record: type[Any]
    synonyms: bool = True


@frozen
class SectionMapType:
    """A mapping of free names to records; `named` puts the name into the record's field `id`."""

    record: type[Any]
    named: bool = False
    one: str = "NAME"
    hint: str = ""


Kind = (
    TextType
    | IntegerType
    | SecondsType
    | BooleanType
    | DurationType
    | TextListType
    | PatternsType
    | TextMapType
    | TextPairsType
    | IntegerMapType
    | FreeType
    | FreeMapsType
    | MacrosType
    | SectionType
    | SectionMapType
)


@frozen
class Key:
    """One YAML key: its name, what it holds, one sentence for the operator, and bounds as JSON schema words them."""

    name: str
    kind: Kind
    doc: str
    synonyms: tuple[str, ...] = ()
    bounds: Mapping[str, Any] = Factory(dict)


def key(name: str, kind: Kind, doc: str, *, synonyms: tuple[str, ...] = (), **bounds: Any) -> dict[str, Key]:
    """The `metadata=` of an attrs field that is read from the YAML key `name`; `bounds` go into the JSON schema."""
    return {"key": Key(name, kind, doc, synonyms, bounds)}


def keys_of(record: type[Any]) -> dict[str, tuple[Attribute[Any], Key]]:
    """The YAML keys of a record in the order of its fields, each with its attribute."""
    return {
        attribute.metadata["key"].name: (attribute, attribute.metadata["key"])
        for attribute in fields(record)
        if "key" in attribute.metadata
    }
