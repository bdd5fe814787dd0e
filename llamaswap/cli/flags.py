"""The `llamaswap` command: the Go program's own command line, running the same service as `twist llamaswap`.

If the first word is not a flag, it is a subcommand. An existing unit file or container only has to change the program's
name, so the flag rules are those of Go's flag package: one or two dashes, `-name value` or `-name=value`, booleans
never take the next word, and parsing stops at the first word that is not a flag.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from attrs import field, frozen

from llamaswap import early_signals

VALUE_FLAGS = {
    "config": "one YAML configuration file",
    "config-dir": "a directory whose *.yml and *.yaml files are merged, in addition to -config",
    "listen": "host:port, :port or [v6]:port; default :8080, with TLS :8443",
    "tls-cert-file": "TLS certificate, together with -tls-key-file",
    "tls-key-file": "TLS private key, together with -tls-cert-file",
}
SWITCHES = {
    "allow-config-edit": "let the API and the web page change the -config file",
    "watch-config": "reload when a configuration source changes",
    "validate": "check the configuration, print what is wrong, and exit (0: it is valid)",
    "version": "print the version and exit",
}
COMMAND_OPTIONS = ("json", "key", "url")  # of most commands, none of the server
DEFAULT_CONFIG = "config.yaml"  # in the current folder, if no configuration is named
TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


class FlagError(Exception):
    """The command line cannot be parsed; the text names the word and the reason."""


class HelpRequested(Exception):
    """-h or -help was among the words."""


@frozen
class ServerFlags:
    """A parsed command line. `values` and `switches` hold the given flags by their name without dashes."""

    values: dict[str, str] = field(factory=dict)
    switches: dict[str, bool] = field(factory=dict)


def parse(words: Sequence[str]) -> ServerFlags:
    """Parse `words` (without the program's name). Raises FlagError or HelpRequested."""
    flags = ServerFlags()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if len(word) < 2 or word[0] != "-" or word == "--":
            break
        name, equals, value = word[2 if word[1] == "-" else 1 :].partition("=")
        if not name or name[0] in "-=":
            raise FlagError(f"bad flag syntax: {word}")
        if name in SWITCHES:
            if equals and value not in TRUE | FALSE:
                raise FlagError(f'invalid boolean value "{value}" for -{name}')
            flags.switches[name] = not equals or value in TRUE
        elif name in VALUE_FLAGS:
            if not equals:
                if not rest:
                    raise FlagError(f"flag needs an argument: -{name}")
                value = rest.pop(0)
            flags.values[name] = value
        elif name in ("h", "help"):
            raise HelpRequested
        else:
            raise FlagError(f"flag provided but not defined: -{name}")
    return flags


def usage() -> str:
    """The help text."""
    lines = [
        "Usage of llamaswap: flags start the server; a command does something else (llamaswap help lists them).",
    ]
    for name, text in sorted({**VALUE_FLAGS, **SWITCHES}.items()):
        kind = "" if name in SWITCHES else " string"
        lines.append(f"  -{name}{kind}\n    \t{text}")
    return "\n".join(lines)


def check_words(flags: ServerFlags) -> list[str]:
    """The command that checks the configuration of these flags."""
    file, folder = flags.values.get("config"), flags.values.get("config-dir")
    words = ["check", *(["--listen", flags.values["listen"]] if "listen" in flags.values else [])]
    if file and folder:
        words += ["--config-dir", folder]
    return [*words, "--", file or folder or DEFAULT_CONFIG]


def _is_server_flag(word: str) -> bool:
    """Whether a word is a flag of the server, or asks for the list of them; `start` has options of `load` too."""
    name = word.lstrip("-").partition("=")[0]
    return word.startswith("-") and (name in VALUE_FLAGS or name in SWITCHES or name in ("h", "help"))


def _check_first_word(words: Sequence[str]) -> None:
    """Exit if the first word is an option of commands, which the server does not have."""
    option = words[0].lstrip("-").partition("=")[0] if words and words[0].startswith("-") else ""
    if option in COMMAND_OPTIONS:
        print(f"put --{option} after the command: llamaswap ps --{option} ...", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `llamaswap` console script."""
    words = list(sys.argv[1:] if argv is None else argv)
    _check_first_word(words)
    if words[:1] == ["serve"] or (words[:1] == ["start"] and (len(words) == 1 or _is_server_flag(words[1]))):
        words = words[1:]
    if (words and not words[0].startswith("-")) or "_LLAMASWAP_COMPLETE" in os.environ:
        from llamaswap.cli.command_group import main as run_command

        early_signals.release()  # a closed terminal must end a command
        run_command(words)
        return
    early_signals.catch()
    try:
        flags = parse(words)
    except HelpRequested:
        print(usage(), file=sys.stderr)
        raise SystemExit(0) from None
    except FlagError as error:
        print(f"{error}\n{usage()}", file=sys.stderr)
        raise SystemExit(2) from None
    if flags.switches.get("version"):
        from llamaswap.version import describe

        print(describe())
        raise SystemExit(0)
    if not flags.values.get("config") and not flags.values.get("config-dir"):
        if not os.path.exists(DEFAULT_CONFIG):
            print(
                f"no configuration: {DEFAULT_CONFIG} does not exist here; give -config FILE or -config-dir FOLDER; "
                "llamaswap init writes one, llamaswap demo needs none",
                file=sys.stderr,
            )
            raise SystemExit(1)
        flags.values["config"] = DEFAULT_CONFIG
    if flags.switches.get("validate"):
        from llamaswap.cli.command_group import main as run_command

        if os.path.isdir(flags.values.get("config", "")):
            print(f"-config {flags.values['config']} is a folder; use -config-dir", file=sys.stderr)
            raise SystemExit(1)
        run_command(check_words(flags))
        return
    from twisted.application.twist._twist import Twist  # what the `twist` script itself runs

    twist = ["twist", "llamaswap"]
    for name, value in flags.values.items():
        twist += [f"--{name}", value]
    twist += [f"--{name}" for name in ("allow-config-edit", "watch-config") if flags.switches.get(name)]
    Twist.main(twist)
