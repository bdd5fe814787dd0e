"""What goes to the operator's terminal or journal: the first lines, the last words, and others' errors among ours."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from attrs import define
from twisted.logger import ILogObserver, Logger, formatEvent
from zope.interface import implementer

from llamaswap.app.settings import ServiceSettings
from llamaswap.config import LoadedConfig
from llamaswap.config.references import peers_that_lead_back
from llamaswap.observe.log_format import LogFormatter
from llamaswap.observe.stdout import StdoutWriter

log = Logger("llamaswap.app.service")


def write_stdout() -> StdoutWriter:
    """A writer on the real standard output: `twist` replaces sys.stdout by its log."""
    stream = sys.__stdout__.buffer if sys.__stdout__ is not None else open(os.devnull, "wb")  # noqa: SIM115

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return StdoutWriter(write)


@implementer(ILogObserver)
@define
class LibraryErrors:
    """Errors of the libraries below us (an unhandled failure, something printed) as lines of our log."""

    lines: LogFormatter

    def __call__(self, event: dict[str, Any]) -> None:
        """An observer of every event; ours are written by their own."""
        namespace = event.get("log_namespace") or ""
        level = event.get("log_level")
        if namespace.startswith("llamaswap") or level is None or level.name not in ("error", "critical"):
            return
        failure = event.get("log_failure")
        text = formatEvent(event) or ""
        if failure is not None:
            text = f"{text}\n{failure.getTraceback()}".strip()
        self.lines.line("error", f"{namespace}: {text}")


def announce(settings: ServiceSettings, loaded: LoadedConfig, host: Any) -> None:
    """The lines that an operator looks for first; also those that say who may come in. `host` is where we listen, of
    whatever kind the endpoint is."""
    listen = settings.listen
    scheme = "https" if listen.secure else "http"
    if hasattr(host, "port"):
        shown = "localhost" if host.host in ("", "0.0.0.0", "::", "127.0.0.1") else host.host
        shown = f"[{shown}]" if ":" in shown else shown
        where = f"{scheme}://{shown}:{host.port}"
    else:
        where = listen.text
    for warning in loaded.warnings:
        log.warn("configuration: {warning}", warning=str(warning))
    log.info("listening on {where}", where=where)
    for peer in peers_that_lead_back(loaded.config.peers, getattr(host, "port", 0)):
        log.error(
            "peer {peer} is this server itself; requests for its models fail with 508, remove it from peers", peer=peer
        )
    if not listen.loopback_only:
        if loaded.config.api_keys:
            log.info("listening on all interfaces; use -listen localhost:PORT to restrict it to this machine")
        else:
            log.warn(
                "listening on all interfaces without authentication; set apiKeys or -listen localhost:PORT",
            )
    if settings.demo:
        for line in demo_hints(where, sorted(loaded.config.models)):
            log.info("{line}", line=line)


def give_up(message: str) -> NoReturn:
    """Say why the service cannot run and end with status 1; the reactor does not turn yet."""
    sys.stderr.write(message + "\n")
    raise SystemExit(1)


def demo_hints(where: str, models: list[str]) -> list[str]:
    """What to try with the demo, line by line."""
    ask = (
        "curl -N {where}/v1/chat/completions -H 'Content-Type: application/json' "
        '-d \'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "hello river"}}]}}\''
    )
    lines = ["This is the demo. Ask one model, then another, and they swap:"]
    lines += ["  " + ask.format(where=where, model=model) for model in models]
    return [*lines, f"and watch it at {where}/ui/"]
