"""Commands and texts as they may be shown: what looks like a secret, or is one of ours, becomes three stars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llamaswap.config import Config

MASK = "***"
_WORD = r"(?:api[-_]?key|token|secret|passw(?:or)?d|credential|authorization|auth[-_]?key)"
# --max-tokens and --tokenizer carry no secrets, however their names sound.
_FLAG = re.compile(rf"--?(?:[\w-]*[-_])?{_WORD}s?(?![\w])", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>[\w.-]*{_WORD}s?)=(?P<value>.+)", re.IGNORECASE | re.DOTALL)
_HARMLESS = re.compile(r"(?:max|num|n|min|batch|special|stop|eos|bos|pad)[-_]?(?:[\w-]*[-_])?tokens?$", re.IGNORECASE)
_YAML = re.compile(
    rf"(?im)^(?P<lead>[ \t]*(?:-[ \t]+)?[\"']?[\w.-]*{_WORD}[\"']?[ \t]*:[ \t]*)(?P<value>[^\s#\[{{|>&*][^\n#]*)"
)


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


def known_secrets(config: Config) -> list[str]:
    """The secrets the configuration names."""
    keys = [key.value for key in config.api_keys]
    return keys + [peer.api_key.value for peer in config.peers.values() if peer.api_key is not None]
