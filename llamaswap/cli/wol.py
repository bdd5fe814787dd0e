"""`wol`: the front for a machine that sleeps, with the flags of the Go program's wol-proxy."""

from __future__ import annotations

import sys
from typing import Any, TextIO

import click
from twisted.logger import ILogObserver

LEVELS = ("debug", "info", "warn", "error")


@click.command()
@click.option("--mac", "-mac", required=True, help="Hardware address of the machine to wake.")
@click.option("--upstream", "-upstream", required=True, help="URL of llamaswap on that machine.")
@click.option("--listen", "-listen", default=":8080", show_default=True, help="host:port or :port.")
@click.option(
    "--timeout", "-timeout", type=click.IntRange(min=1), default=60, show_default=True, help="Seconds to wait."
)
@click.option(
    "--log", "-log", "level", type=click.Choice(LEVELS), default="info", show_default=True, help="Least level."
)
@click.option("--broadcast", "-broadcast", default="255.255.255.255", show_default=True, help="Where the packet goes.")
def wol(mac: str, upstream: str, listen: str, timeout: int, level: str, broadcast: str) -> None:
    """Wake a sleeping machine when a request comes, and pass the request on."""
    from llamaswap.app import wake_on_lan as front
    from llamaswap.config.urls import UrlError, parse
    from llamaswap.proxy.listen import ListenAddress, refusal

    try:
        endpoint = parse(upstream)
        wake = front.broadcaster(mac, broadcast)
    except (UrlError, ValueError) as error:
        raise click.BadParameter(str(error)) from None
    if endpoint is None:
        raise click.BadParameter(f"{upstream}: expected http://HOST:PORT")
    _log(level)

    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    async def serve(reactor: Any) -> None:
        try:
            port = await front.begin(reactor, ListenAddress(listen), endpoint, wake, float(timeout))
        except Exception as error:
            raise SystemExit(refusal(listen, error)) from None
        host = port.getHost()
        where = f"{host.host}:{host.port}" if hasattr(host, "port") else listen
        front.log.info("listening on {where}, for {url}", where=where, url=upstream)
        await Deferred()  # until a signal

    react(lambda reactor: Deferred.fromCoroutine(serve(reactor)))


def _log(level: str) -> None:
    from twisted.logger import globalLogBeginner

    globalLogBeginner.beginLoggingTo([observer(sys.stderr, level)], redirectStandardIO=False)


def observer(stream: TextIO, level: str) -> ILogObserver:
    """Writes what is of this level or above; of the libraries' own doings only warnings, but for `debug`."""
    from twisted.logger import LogLevel, textFileLogObserver
    from zope.interface import implementer

    least = LogLevel.lookupByName(level)
    others = least if level == "debug" else max(least, LogLevel.warn)
    write = textFileLogObserver(stream)

    def observe(event: dict[str, Any]) -> None:
        own = str(event.get("log_namespace", "")).startswith("llamaswap")
        if (event.get("log_level") or LogLevel.info) >= (least if own else others):
            write(event)

    written: ILogObserver = implementer(ILogObserver)(observe)
    return written
