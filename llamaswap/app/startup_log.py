"""The first lines of the log, and the message of a service that cannot start."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import NoReturn

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.logger import Logger

from llamaswap.app.ollama_listener import listen_address
from llamaswap.app.settings import ServiceSettings
from llamaswap.config import LoadedConfig, api_keys
from llamaswap.config.diagnostics import located
from llamaswap.config.references import peers_that_lead_back
from llamaswap.version import running

log = Logger("llamaswap.app.service")


def announce(settings: ServiceSettings, loaded: LoadedConfig, address: object) -> None:
    """Log what was started, where it listens and who can reach it, and what is odd about the configuration. `address`
    is the one of the listening socket, of whatever kind the endpoint is."""
    listen = settings.listen
    scheme = "https" if listen.secure else "http"
    port = 0
    where = listen.text
    if isinstance(address, (IPv4Address, IPv6Address)):
        port = address.port
        host = "localhost" if address.host in ("", "0.0.0.0", "::", "127.0.0.1") else address.host
        where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    expired = (located(problem, loaded.root) for problem in api_keys.expired(loaded.config, time.time()))
    for warning in (*loaded.warnings, *expired):
        log.warn("configuration: {problem}", problem=str(warning))
    count = sum(not model.replica_of for model in loaded.config.models.values())
    log.info(
        "llamaswap {version}: {count} model{plural} in {sources}",
        version=running().version,
        count=count,
        plural="" if count == 1 else "s",
        sources="the demo" if settings.demo else " and ".join(filter(None, (settings.config, settings.config_dir))),
    )
    log.info("listening on {where}", where=where)
    if port:
        log.info("the web page is {where}/ui/", where=where)
    for peer in peers_that_lead_back(loaded.config.peers, port):
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
    second = listen_address(loaded.config.ollama)
    if second is not None and not second.loopback_only and not loaded.config.api_keys:
        log.warn(
            "{address} of ollama.listen can be reached from other machines without authentication; set apiKeys, "
            "or listen on 127.0.0.1",
            address=second.text,
        )
    if settings.demo:
        for line in demo_hints(where, sorted(loaded.config.models)):
            log.info("{line}", line=line)


def log_missing(findings: Iterable[str]) -> None:
    """Log what the models need and this machine does not have."""
    for finding in findings:
        log.warn("configuration: {finding}", finding=finding)


def give_up(message: str) -> NoReturn:
    """Write why the service cannot run, and end with status 1; the reactor does not run yet."""
    sys.stderr.write(message.rstrip("\n") + "\n")
    raise SystemExit(1)


def demo_hints(where: str, models: list[str]) -> list[str]:
    """Commands that try the demo, line by line."""
    ask = (
        "curl -N {where}/v1/chat/completions -H 'Content-Type: application/json' "
        '-d \'{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "hello river"}}]}}\''
    )
    lines = ["This is the demo. Ask one model, then another, and they swap:"]
    lines += ["  " + ask.format(where=where, model=model) for model in models]
    return lines
