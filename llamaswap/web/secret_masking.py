"""Masks secrets in commands and texts: what looks like a secret, or is a configured one, becomes three stars."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from llamaswap.config import Config, ConfigText
from llamaswap.config.nodes import MappingNode, Node, SequenceNode
from llamaswap.config.yaml_tree import parse
from llamaswap.errors import ConfigError

MASK = "***"
MAX_MASKS_IN_LINE = 20  # in a line with more, an edit cannot keep the secrets
SHORTEST_SECRET = 4  # characters; a shorter known secret is not masked in texts
SHORTEST_NUMBER = 6  # digits; a shorter number under such a name is a count, and masking it would mask every port
_WORD = r"(?:api[-_]?key|token|secret|passw(?:or)?d|credential|authorization|auth[-_]?key)"
# --max-tokens and --tokenizer carry no secrets, however their names sound.
_FLAG = re.compile(rf"--?(?:[\w-]*[-_])?{_WORD}s?(?![\w])", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>[\w.-]*{_WORD}s?)=(?P<value>.+)", re.IGNORECASE | re.DOTALL)
_HARMLESS = re.compile(r"(?:max|num|n|min|batch|special|stop|eos|bos|pad)[-_]?(?:[\w-]*[-_])?tokens?$", re.IGNORECASE)
_YAML = re.compile(
    rf"(?im)^(?P<lead>[ \t]*(?:-[ \t]+)?[\"']?[\w.-]*{_WORD}[\"']?[ \t]*:[ \t]*)(?P<value>[^\s#\[{{|>&*][^\n#]*)"
)
# A flag and the word behind it, which may be on the next line, or an assignment, anywhere in a text.
_IN_COMMAND = re.compile(
    rf"""(?P<lead>(?<![\w-])(?P<flag>--?(?:[\w-]*[-_])?{_WORD}s?)(?:=|[ \t]*\\?\n[ \t]*|[ \t]+)
    |(?<![\w.-])(?P<name>[\w.-]*{_WORD}s?)=)(?P<value>"[^"\n]*"|'[^'\n]*'|[^\s"',\]}}]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_KEY = re.compile(rf"[\w.-]*{_WORD}s?", re.IGNORECASE)
_KEY_LINE = re.compile(rf"[ \t]*(?:-[ \t]+)?[\"']?[\w.-]*{_WORD}s?[\"']?[ \t]*:(?P<rest>.*)", re.IGNORECASE)
_WORDS = re.compile(r"[^\s,\[\]{}\"'#|>]+")
_REFERENCE = re.compile(r"\$\{env\.[^}]*\}")
_REFERRED = "environment-reference"  # replaces one while a text is searched


def _secretive(flag: str) -> bool:
    name = flag.lstrip("-")
    return bool(_FLAG.fullmatch(flag)) and not _HARMLESS.search(name) and name.lower() != "tokens"


def masked_command(argv: Sequence[str], known: Iterable[str] = ()) -> list[str]:
    """The words of a command, without the values of flags and assignments that name a secret, and without `known`."""
    shown: list[str] = []
    hide = False
    for word in argv:
        if hide:
            shown.append(MASK)
            hide = False
            continue
        flag, equals, _ = word.partition("=")
        if equals and _secretive(flag):
            word = f"{flag}={MASK}"
        elif _secretive(word):
            hide = True
        else:
            assigned = _ASSIGNED.fullmatch(word)
            if assigned and not word.startswith("-") and not _HARMLESS.search(assigned["name"]):
                word = f"{assigned['name']}={MASK}"
        shown.append(masked_text(word, known))
    return shown


def masked_text(text: str, known: Iterable[str]) -> str:
    """A text without the known secrets, and without the values of flags and assignments that name a secret.

    Known secrets of less than four characters stay: masking them would mask half of the text.
    """
    text = _IN_COMMAND.sub(_in_command, text)
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return text


def _in_command(match: re.Match[str]) -> str:
    flag, value = match["flag"], match["value"].lstrip("\"'")
    told = value.startswith("${") or (flag and value.startswith("-") and not match["lead"].endswith("="))
    secret = _secretive(flag) if flag else not _HARMLESS.search(match["name"])
    return f"{match['lead']}{MASK}" if secret and not told else match[0]


def masked_yaml(text: str, known: Iterable[str] = ()) -> str:
    """A configuration's text without known secrets and without the values of keys, flags and assignments that name one.

    References to the environment and to macros stay: they reveal nothing, and show where the secret comes from.
    """

    def of_key(match: re.Match[str]) -> str:
        return match[0] if match["value"].lstrip("\"'").startswith("${env.") else f"{match['lead']}{MASK}"

    return masked_text(_YAML.sub(of_key, text), known)


def hidden_in(shown: str, real: str) -> list[tuple[str, str]]:
    """What the masks in a shown line stand for, if `real` is that line without them: (word before the mask, secret)."""
    parts = shown.split(MASK)
    found = re.fullmatch("(.*?)".join(map(re.escape, parts)), real) if len(parts) <= MAX_MASKS_IN_LINE else None
    return [] if found is None else list(zip(map(_lead, parts), found.groups(), strict=False))


def _lead(text: str) -> str:
    """The last word before a mask."""
    words = text.split()
    return words[-1] if words else ""


def revealed(line: str, secrets: Mapping[str, Collection[str]]) -> str | None:
    """An edited line with its secrets, each found by the word before it; None if a word has no secret or several."""
    parts = line.split(MASK)
    whole = parts[0]
    for before, after in pairwise(parts):
        found = secrets.get(_lead(before), ())
        if len(found) != 1:
            return None
        whole += next(iter(found)) + after
    return whole


def named_secrets(text: str) -> list[str]:
    """The values in a configuration's text whose keys name a secret, also in lists, in force or not.

    In a text that is not YAML, every word below such a key counts as a secret.
    """
    plain_text = _REFERENCE.sub(_REFERRED, text)
    try:
        root = parse(ConfigText("config", plain_text), {})
    except ConfigError:
        return list(_words_below(plain_text))
    return [] if root is None else [value for value in _values_below(root, secret=False) if value != _REFERRED]


def _values_below(node: Node, *, secret: bool) -> Iterator[str]:
    if isinstance(node, MappingNode):
        for name, child in node.entries.items():
            named = bool(_KEY.fullmatch(name)) and not _HARMLESS.search(name)
            yield from _values_below(child, secret=named or (secret and name == "key"))
    elif isinstance(node, SequenceNode):
        for child in node.items:
            yield from _values_below(child, secret=secret)
    elif secret and (node.kind == "str" or (node.kind == "int" and len(node.text) >= SHORTEST_NUMBER)):
        # The text has a secret of several lines line by line.
        yield from (line.strip() for line in node.text.splitlines())


def _words_below(text: str) -> Iterator[str]:
    depth: int | None = None
    for line in text.splitlines():
        here = len(line) - len(line.lstrip())
        named = _KEY_LINE.match(line)
        if named:
            depth, line = here, named["rest"]
        elif depth is None or (line.strip() and here <= depth and not line.lstrip().startswith("-")):
            depth = None
            continue
        yield from (word for word in _WORDS.findall(line) if not word.endswith(":"))


def known_secrets(config: Config) -> list[str]:
    """The configured secrets: API keys, and the keys of peers."""
    keys = [key.value for key in config.api_keys]
    return keys + [peer.api_key.value for peer in config.peers.values() if peer.api_key is not None]
