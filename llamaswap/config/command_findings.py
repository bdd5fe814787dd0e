"""Warnings about commands: they are run without a shell, quotes must end, and a model's port should be its proxy's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from llamaswap.config.command_line import Word, words
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.schema import HookSettings
from llamaswap.config.schema.model import Model

_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash", "fish"})
_WRAPPERS = frozenset({"sudo", "doas", "env", "nice", "ionice", "exec", "nohup", "setsid", "stdbuf", "time"})
_CONTAINER_CLIENTS = frozenset({"docker", "podman", "nerdctl"})
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
# Each has the syntax, and nothing else of the word, in its only group: the rest may be a secret.
_OPERATOR = re.compile(r"(?:.*(?=;))?(&&?|\|[|&]?|;;?|<|[0-9&]?>>?[&\w./-]*)")
_EXPANSION = re.compile(r"(?:^|=)(?=~(?:/|$))(~/?)|(?:^|[=/:,])(\$(?:\(|[A-Z_][A-Z0-9_]*\b))|^(`)")
_PORT = re.compile(r"--?port(?:=(.*))?")


# Most commands have none of these, and are not split into words.
_SUSPICIOUS = re.compile(r"[&|;<>~$`'\"]|^\s*[A-Za-z_]\w*=|docker|podman|nerdctl")


def check_commands(models: Iterable[Model], hooks: HookSettings, report: Diagnostics) -> None:
    """Warn of the first word in each command that needs a shell, and of the ports and containers of models."""
    for model in models:
        path = f"models.{model.id}"
        has_own_port = model.endpoint is not None and model.endpoint.port == model.port
        if not has_own_port or _SUSPICIOUS.search(model.cmd):
            _check_model(model, f"{path}.cmd", report)
        if _SUSPICIOUS.search(model.cmd_stop):
            _check_shell_syntax(tuple(words(model.cmd_stop)), f"{path}.cmdStop", report)
    for key in ("before_load", "after_ready", "before_unload", "after_unload", "on_failure"):
        for index, entry in enumerate(getattr(hooks, key)):
            if not entry.startswith(("http://", "https://")):
                _check_shell_syntax(tuple(words(entry)), f"hooks.{key}[{index}]", report)


def _check_model(model: Model, path: str, report: Diagnostics) -> None:
    found = tuple(words(model.cmd))
    _check_shell_syntax(found, path, report)
    program = _program(found)
    if program in _CONTAINER_CLIENTS:
        _check_container(model, program, found, path, report)
    else:
        _check_port(model, found, path, report)


def _program(found: Sequence[Word]) -> str:
    """The name of the program, without wrappers such as sudo and their options."""
    names = [word.text.rpartition("/")[2] for word in found]
    if names and names[0] not in _WRAPPERS:
        return names[0]
    return next((name for name in names if name not in _WRAPPERS and not re.match(r"-|\w+=", name)), "")


def _check_shell_syntax(found: Sequence[Word], path: str, report: Diagnostics) -> None:
    if found and found[-1].unclosed:
        message = "a quote is not closed, so the rest of the command is one argument"
        report.warn(message, path, hint="close it, or write it as \\' or \\\"")
        return
    if not found or _program(found) in _SHELLS:
        return
    assignment = _ASSIGNMENT.match(found[0].text)
    if assignment:
        message = f"{assignment[0]}... is run as a program, because the command is not read by a shell"
        report.warn(message, path, hint="set variables in `env:`")
        return
    for word in found:
        syntax = None if word.quoted else _OPERATOR.fullmatch(word.text)
        if syntax is None and not re.search(r"\s", word.text):
            syntax = _EXPANSION.search(word.text)
        if syntax:
            part = syntax[syntax.lastindex or 0]
            message = f"{part!r} reaches the program as it is, because the command is not read by a shell"
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
