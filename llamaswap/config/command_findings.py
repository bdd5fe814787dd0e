"""Warnings about a model's command: it is run without a shell, and its port should be that of the proxy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from llamaswap.config.command_line import Word, words
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.schema import Model

_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"})
_WRAPPERS = frozenset({"sudo", "doas", "env", "nice", "ionice", "exec", "nohup", "setsid", "stdbuf", "time"})
_CONTAINER_CLIENTS = frozenset({"docker", "podman", "nerdctl"})
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
# Each has the syntax, and nothing else of the word, in its only group: the rest may be a secret.
_OPERATOR = re.compile(r"(?:.*(?=;))?(&&?|\|[|&]?|;;?|<|[0-9&]?>>?[&\w./-]*)")
_EXPANSION = re.compile(r"(?:^|=)(?=~(?:/|$))(~/?)|(?:^|[=/:,])(\$(?:\(|\{?[A-Z_][A-Z0-9_]*\b))|^(`)")
_PORT = re.compile(r"--?port(?:=(.*))?")


# Most commands have none of these, and need no look at their words.
_SUSPICIOUS = re.compile(r"[&|;<>~$`]|^\s*[A-Za-z_]\w*=|docker|podman|nerdctl")


def check_command(model: Model, report: Diagnostics) -> None:
    """Warn of the first word in a model's `cmd` that needs a shell, and of its port and container."""
    has_own_port = model.endpoint is not None and model.endpoint.port == model.port
    found = () if has_own_port and not _SUSPICIOUS.search(model.cmd) else tuple(words(model.cmd))
    if not found:
        return
    path = f"models.{model.id}.cmd"
    program = _program(found)
    if program not in _SHELLS:
        _check_shell_syntax(found, path, report)
    if program in _CONTAINER_CLIENTS:
        _check_container(model, program, found, path, report)
    else:
        _check_port(model, found, path, report)


def _program(found: Sequence[Word]) -> str:
    """The name of the program, without wrappers such as sudo and their options."""
    names = [word.text.rpartition("/")[2] for word in found]
    if names[0] not in _WRAPPERS:
        return names[0]
    return next((name for name in names if name not in _WRAPPERS and not re.match(r"-|\w+=", name)), "")


def _check_shell_syntax(found: Sequence[Word], path: str, report: Diagnostics) -> None:
    assignment = _ASSIGNMENT.match(found[0].text)
    if assignment:
        message = f"{assignment[0]}... is run as a program, because cmd is not read by a shell"
        report.warn(message, path, hint="set variables in `env:`")
        return
    for word in found:
        syntax = None if word.quoted else _OPERATOR.fullmatch(word.text)
        if syntax is None and not re.search(r"\s", word.text):
            syntax = _EXPANSION.search(word.text)
        if syntax:
            message = (
                f"{syntax[syntax.lastindex or 0]!r} reaches the program as it is, because cmd is not read by a shell"
            )
            report.warn(message, path, hint="write the value out, or run the command with sh -c '...'")
            return


def _check_port(model: Model, found: Sequence[Word], path: str, report: Diagnostics) -> None:
    endpoint = model.endpoint
    if endpoint is None or not endpoint.on_this_machine:
        return
    for word, following in pairwise((*found, Word("", False))):
        match = _PORT.fullmatch(word.text)
        port = (match[1] or following.text) if match else ""
        if re.fullmatch(r"[0-9]{1,5}", port) and int(port) != endpoint.port:
            report.warn(
                f"the command listens on port {port}, but proxy leads to port {endpoint.port}",
                path,
                hint="use the same port, or ${PORT} in both",
            )
            return


def _check_container(model: Model, program: str, found: Sequence[Word], path: str, report: Diagnostics) -> None:
    texts = [word.text for word in found]
    if "run" not in texts or model.cmd_stop.strip():
        return
    for text, following in pairwise((*texts, "")):
        name = following if text == "--name" else text.removeprefix("--name=") if text.startswith("--name=") else ""
        if name:
            report.warn(
                f"container {name} may outlive its client, and the next load then fails",
                path,
                hint=f"set cmdStop: {program} stop {name}",
            )
            return
