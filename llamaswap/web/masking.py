"""Commands and texts as they may be shown: what looks like a secret, or is one of ours, becomes three stars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from llamaswap.config import Config, Source
from llamaswap.config.documents import parse
from llamaswap.config.nodes import Items, Node, Table
from llamaswap.errors import ConfigError

MASK = "***"
SHORTEST_NUMBER = 6  # digits; shorter ones under such a name are counts, and hiding them would hide every port
_WORD = r"(?:api[-_]?key|token|secret|passw(?:or)?d|credential|authorization|auth[-_]?key)"
# --max-tokens and --tokenizer carry no secrets, however their names sound.
_FLAG = re.compile(rf"--?(?:[\w-]*[-_])?{_WORD}s?(?![\w])", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>[\w.-]*{_WORD}s?)=(?P<value>.+)", re.IGNORECASE | re.DOTALL)
_HARMLESS = re.compile(r"(?:max|num|n|min|batch|special|stop|eos|bos|pad)[-_]?(?:[\w-]*[-_])?tokens?$", re.IGNORECASE)
_YAML = re.compile(
    rf"(?im)^(?P<lead>[ \t]*(?:-[ \t]+)?[\"']?[\w.-]*{_WORD}[\"']?[ \t]*:[ \t]*)(?P<value>[^\s#\[{{|>&*][^\n#]*)"
)


_KEY = re.compile(rf"[\w.-]*{_WORD}s?", re.IGNORECASE)
_KEY_LINE = re.compile(rf"[ \t]*(?:-[ \t]+)?[\"']?[\w.-]*{_WORD}s?[\"']?[ \t]*:(?P<rest>.*)", re.IGNORECASE)
_WORDS = re.compile(r"[^\s,\[\]{}\"'#|>]+")
_REFERENCE = re.compile(r"\$\{env\.[^}]*\}")


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
    """A text without the known secrets. Very short ones are left: they would hide half of everything else."""
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, MASK)
    return text


def masked_yaml(text: str, known: Iterable[str] = ()) -> str:
    """A configuration file's text without known secrets and without scalar values of keys that name one.

    References to the environment stay: they tell nothing, and show where the secret comes from.
    """

    def mask(match: re.Match[str]) -> str:
        return match[0] if match["value"].lstrip("\"'").startswith("${env.") else f"{match['lead']}{MASK}"

    return masked_text(_YAML.sub(mask, text), known)


def named_secrets(text: str) -> list[str]:
    """The secrets that a configuration's text holds by the names of its keys, also in lists, in force or not.

    Of a text that is no YAML every word below such a key: better too many.
    """
    plain_text = _REFERENCE.sub("reference", text)
    try:
        root = parse(Source("config", plain_text), {})
    except ConfigError:
        return list(_words_below(plain_text))
    return [] if root is None else list(_values_below(root, secret=False))


def _values_below(node: Node, *, secret: bool) -> Iterator[str]:
    if isinstance(node, Table):
        for name, child in node.entries.items():
            yield from _values_below(child, secret=bool(_KEY.fullmatch(name)) and not _HARMLESS.search(name))
    elif isinstance(node, Items):
        for child in node.items:
            yield from _values_below(child, secret=secret)
    elif secret and (node.kind == "str" or (node.kind == "int" and len(node.text) >= SHORTEST_NUMBER)):
        # A secret of several lines stands line by line in the text.
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
    """The secrets the configuration names."""
    keys = [key.value for key in config.api_keys]
    return keys + [peer.api_key.value for peer in config.peers.values() if peer.api_key is not None]
