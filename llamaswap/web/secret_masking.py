"""Masks secrets in commands and texts: what looks like a secret, or is a configured one, becomes three stars.

In a text to be edited a mark behind the stars tells which secret they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2s
from secrets import token_bytes

from attrs import define, field

from llamaswap.config import Config, ConfigText
from llamaswap.config.nodes import MappingNode, Node, SequenceNode
from llamaswap.config.yaml_tree import parse
from llamaswap.errors import ConfigError

MASK = "***"
MARKED = re.compile(r"(\*\*\*[0-9a-f]{8})")
MAX_MARKS = 10_000  # secrets that are remembered by their marks
SHORTEST_SECRET = 4  # characters; a shorter known secret is not masked in texts
SHORTEST_NUMBER = 6  # digits; a shorter number under such a name is a count, and masking it would mask every port
_WORD = r"(?:api[-_]?key|token|secret|passw(?:or)?d|credential|authorization|auth[-_]?key)"
# --max-tokens and --tokenizer carry no secrets, however their names sound.
_FLAG = re.compile(rf"--?(?:[\w-]*[-_])?{_WORD}s?(?![\w])", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>[\w.-]*{_WORD}s?)=(?P<value>.+)", re.IGNORECASE | re.DOTALL)
_HARMLESS = re.compile(
    r"^tokens$|(?:max|num|n|min|batch|special|stop|eos|bos|pad|budget|completion|prompt|total|new)"
    r"[-_]?(?:[\w-]*[-_])?tokens?$",
    re.IGNORECASE,
)
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
_KEY_LINE = re.compile(rf"[ \t]*(?:-[ \t]+)?[\"']?(?P<name>[\w.-]*{_WORD}s?)[\"']?[ \t]*:(?P<rest>.*)", re.IGNORECASE)
# The settings in an entry of apiKeys besides the key itself.
KEY_ENTRY_FIELDS = frozenset(
    {
        *("name", "scopes", "models", "priority", "maxParallel", "rpm", "tpm", "budget", "tokens", "window", "expires"),
        *("filters", "maxTokens", "maxDuration"),
    }
)
_PAIR = re.compile(
    r"[\"']?(?P<name>[A-Za-z]\w*)[\"']?[ \t]*:(?:[ \t]+(?:\[[^\]]*\]?|\{|\"[^\"]*\"?|'[^']*'?|[^,}\]\s]*)|$)"
)
_WORDS = re.compile(r"[^\s,\[\]{}\"'#|>]+")
_REFERENCE = re.compile(r"\$\{env\.[^}]*\}")
_REFERRED = "environment-reference"  # replaces one while a text is searched


def _secretive(flag: str) -> bool:
    name = flag.lstrip("-")
    return bool(_FLAG.fullmatch(flag)) and not names_text_tokens(name)


def names_text_tokens(name: str) -> bool:
    """Whether a name is about tokens of text, their number or a special one, and not about a secret."""
    return bool(_HARMLESS.search(name))


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
            if assigned and not word.startswith("-") and not names_text_tokens(assigned["name"]):
                word = f"{assigned['name']}={MASK}"
        shown.append(masked_text(word, known))
    return shown


class Masks:
    """What is shown in place of secrets."""

    def mask(self, secret: str) -> str:
        """What is shown for this secret."""
        return MASK

    def replaced(self, text: str, secret: str) -> str:
        """A text with the mask wherever this secret stands."""
        return text.replace(secret, MASK)


@define(eq=False)
class MarkedMasks(Masks):
    """Masks with a mark for each secret, by which an edited text gets its secrets back.

    Marks are those of one process, and tell nothing about the secrets.
    """

    _salt: bytes = field(factory=lambda: token_bytes(16), init=False, repr=False)
    _secrets: dict[str, str] = field(factory=dict, init=False, repr=False)

    def mask(self, secret: str) -> str:
        """The stars and the mark of this secret."""
        shown = MASK + blake2s(secret.encode(), key=self._salt, digest_size=4).hexdigest()
        self._secrets[shown] = secret
        while len(self._secrets) > MAX_MARKS:
            del self._secrets[next(iter(self._secrets))]
        return shown

    def replaced(self, text: str, secret: str) -> str:
        """The same outside of masks: a short secret may look like a part of a mark."""
        parts = MARKED.split(text)
        if any(secret in part for part in parts[::2]):
            mask = self.mask(secret)
            parts[::2] = [part.replace(secret, mask) for part in parts[::2]]
        return "".join(parts)

    def secret_of(self, mask: str) -> str | None:
        """The secret behind a mask that was shown; None if there is none."""
        return self._secrets.get(mask)


_PLAIN = Masks()


def masked_text(text: str, known: Iterable[str], masks: Masks = _PLAIN) -> str:
    """A text without the known secrets, and without the values of flags and assignments that name a secret.

    Known secrets of less than four characters stay: masking them would mask half of the text.
    """

    def in_command(match: re.Match[str]) -> str:
        flag, value = match["flag"], match["value"].lstrip("\"'")
        told = value.startswith("${") or (flag and value.startswith("-") and not match["lead"].endswith("="))
        secret = _secretive(flag) if flag else not names_text_tokens(match["name"])
        return f"{match['lead']}{masks.mask(match['value'])}" if secret and not told else match[0]

    text = _IN_COMMAND.sub(in_command, text)
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = masks.replaced(text, secret)
    return text


def masked_yaml(text: str, known: Iterable[str] = (), masks: Masks = _PLAIN) -> str:
    """A configuration's text without known secrets and without the values of keys, flags and assignments that name one.

    References to the environment and to macros stay: they reveal nothing, and show where the secret comes from.
    """

    def of_key(match: re.Match[str]) -> str:
        value = match["value"].rstrip()
        if value.lstrip("\"'").startswith("${env.") or names_text_tokens(match["lead"].strip(" \t-\"':")):
            return match[0]
        return match["lead"] + masks.mask(value) + match["value"][len(value) :]

    return masked_text(_YAML.sub(of_key, text), known, masks)


def named_secrets(text: str) -> list[str]:
    """The values in a configuration's text whose keys name a secret, also in lists, in force or not.

    In a text that is not YAML, every word below such a key counts as a secret, but for what else is said of an API key.
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
            named = bool(_KEY.fullmatch(name)) and not names_text_tokens(name)
            yield from _values_below(child, secret=named or (secret and name == "key"))
    elif isinstance(node, SequenceNode):
        for child in node.items:
            yield from _values_below(child, secret=secret)
    elif secret and (node.kind == "str" or (node.kind == "int" and len(node.text) >= SHORTEST_NUMBER)):
        # The text has a secret of several lines line by line.
        yield from (line.strip() for line in node.text.splitlines())


def _words_below(text: str) -> Iterator[str]:
    depth: int | None = None
    list_of_names: int | None = None  # the column of the name above a list of models or scopes
    for line in text.splitlines():
        bare = line.lstrip()
        here = len(line) - len(bare)
        named = _KEY_LINE.match(line)
        if named and not names_text_tokens(named["name"]):
            depth, list_of_names, line = here, None, named["rest"]
        elif depth is None or (bare and here <= depth and not bare.startswith("-")):
            depth = None
            continue
        if list_of_names is not None and bare.startswith("-") and here >= list_of_names:
            continue
        list_of_names = None
        for pair in _PAIR.finditer(line):
            if pair["name"] in KEY_ENTRY_FIELDS and pair[0].endswith(":"):
                list_of_names = pair.start()
        line = _PAIR.sub(lambda pair: " " if pair["name"] in KEY_ENTRY_FIELDS else pair[0], line)
        yield from (word for word in _WORDS.findall(line) if not word.endswith(":"))


def known_secrets(config: Config) -> list[str]:
    """The configured secrets: API keys, and the keys of peers."""
    keys = [key.value for key in config.api_keys]
    return keys + [peer.api_key.value for peer in config.peers.values() if peer.api_key is not None]
