"""`wol`: the proxy in front of a machine that sleeps, with the flags of the Go program's wol-proxy."""

from __future__ import annotations

import sys
from typing import TextIO

import click
from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    textFileLogObserver,
)

LEVELS = ("debug", "info", "warn", "error")


@click.command()
@click.option("--mac", "-mac", required=True, help="Hardware address of the machine to wake.")
@click.option("--upstream", "-upstream", required=True, help="URL of llamaswap on that machine.")
@click.option("--listen", "-listen", default=":8080", show_default=True, help="host:port or :port.")
@click.option(
    "--timeout", "-timeout", type=click.IntRange(min=1), default=60, show_default=True, help="Seconds to wait."
)
@click.option(
    "--log", "-log", "level", type=click.Choice(LEVELS), default="info", show_default=True, help="Lowest level."
)
@click.option("--broadcast", "-broadcast", default="255.255.255.255", show_default=True, help="Address of the packet.")
def wol(mac: str, upstream: str, listen: str, timeout: int, level: str, broadcast: str) -> None:
    """Wake a sleeping machine for a request, and forward it."""
    from llamaswap.app import wake_on_lan
    from llamaswap.app.settings import IServiceReactor
    from llamaswap.config.urls import UrlError, parse
    from llamaswap.proxy.listen import ListenAddress, refusal

    try:
        endpoint = parse(upstream)
        send_packet = wake_on_lan.broadcaster(mac, broadcast)
    except (UrlError, ValueError) as error:
        raise click.BadParameter(str(error)) from None
    if endpoint is None:
        raise click.BadParameter(f"{upstream}: expected http://HOST:PORT")

    from twisted.internet.address import IPv4Address, IPv6Address
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react
    from twisted.logger import globalLogBeginner

    globalLogBeginner.beginLoggingTo([observer(sys.stderr, level)], redirectStandardIO=False)

    async def serve(reactor: IServiceReactor) -> None:
        try:
            address = ListenAddress(listen)
            port = await wake_on_lan.listen_and_serve(reactor, address, endpoint, send_packet, float(timeout))
        except Exception as error:
            raise SystemExit(refusal(listen, error)) from None
        where: object = port.getHost()
        if isinstance(where, (IPv4Address, IPv6Address)):
            where = f"{where.host}:{where.port}"
        wake_on_lan.log.info("listening on {where}, for {url}", where=where, url=upstream)
        await Deferred()  # until a signal

    react(lambda reactor: Deferred.fromCoroutine(serve(reactor)))


def observer(stream: TextIO, level: str) -> ILogObserver:
    """Writes events of `level` and above; of the libraries only warnings and above, unless it is debug."""
    lowest = LogLevel.lookupByName(level)
    levels = LogLevelFilterPredicate(lowest if level == "debug" else max(lowest, LogLevel.warn))
    levels.setLogLevelForNamespace("llamaswap", lowest)
    return FilteringLogObserver(textFileLogObserver(stream), [levels])
