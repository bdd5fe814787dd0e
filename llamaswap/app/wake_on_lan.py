"""`llamaswap wol`: an always-on front for a machine that sleeps. A request wakes it, waits, and is carried through.

Whether the machine is awake is asked when somebody wants something, by its `/wol-health`, and believed for a few
seconds: nothing is kept open or polled meanwhile, so an idle front costs nothing and does not keep the machine awake,
and a connection that died in its sleep is never taken for life. What monitors and open pages ask does not wake it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from http.client import responses
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Site

from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ClientGone, UpstreamUnreachable
from llamaswap.http_client import HttpClient, RequestFailed, SendRequest
from llamaswap.proxy.client_connection import ProxyServerFactory
from llamaswap.proxy.exchange import Exchange, Headers, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.listen import ListenAddress
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.task import Task
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.web.dispatch import joined
from llamaswap.web.errors import HttpError, render
from llamaswap.wire import headers as header_rules

log = Logger()

FRESH = 5.0  # seconds an answer of the machine is believed: no probe before each request of a busy time
LOOK = 0.25  # seconds between two looks at a machine that wakes
PACKET_EVERY = 5.0  # seconds between magic packets: one may be lost, and more of them wake nothing sooner
PROBE = 1.0  # seconds a machine that is awake may take to say so
NEVER_WAKES = (b"/health", b"/wol-health", b"/readyz", b"/metrics")

PAGE = b"""<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Waking up</title>
<style>body{font:16px system-ui;display:grid;place-items:center;min-height:90vh;color-scheme:light dark}</style>
<p>The machine is waking up; this page follows by itself.</p>
<script>
setInterval(async () => {
  try { if ((await (await fetch("/status")).text()).startsWith("status: ready")) location.reload() } catch {}
}, 1000)
</script>
"""


def magic_packet(mac: str) -> bytes:
    """Six times ff, sixteen times the address. Raises ValueError for what is no hardware address."""
    digits = re.sub(r"[:.\-]", "", mac)
    if not re.fullmatch(r"[0-9A-Fa-f]{12}", digits):
        raise ValueError(f"{mac}: not a hardware address such as 01:23:45:67:89:ab")
    return b"\xff" * 6 + bytes.fromhex(digits) * 16


def broadcaster(mac: str, address: str = "255.255.255.255", port: int = 9) -> Callable[[], None]:
    """What sends the packet to every machine of the network."""
    packet = magic_packet(mac)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            line.setblocking(False)
            line.sendto(packet, (address, port))

    return send


@define(eq=False)
class WakeableHost:
    """The machine: whether it answers, and having it wake up. `probe` asks it once, `wake` sends a packet."""

    _clock: IReactorTime
    _probe: Callable[[], Deferred[bool]]
    _wake: Callable[[], None]
    failures: int = field(default=0, init=False)
    _heard: float = field(default=float("-inf"), init=False)
    _sent: float = field(default=float("-inf"), init=False)
    _waiting: dict[Deferred[bool], IDelayedCall] = field(factory=dict, init=False)
    _looking: bool = field(default=False, init=False)

    @property
    def fresh(self) -> bool:
        """Whether it was heard of a moment ago."""
        return self._clock.seconds() - self._heard < FRESH

    @property
    def waking(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiting)

    def heard(self) -> None:
        """It answered."""
        self._heard = self._clock.seconds()
        self.failures = 0
        for waiter in list(self._waiting):
            self._answer(waiter, True)

    def lost(self) -> None:
        """It did not answer: what was heard before is not believed any more."""
        self._heard = float("-inf")

    async def look(self) -> bool:
        """Whether it is awake; asks if that is not known. Never wakes it."""
        if self.fresh:
            return True
        if await maybeDeferred(self._probe):
            self.heard()
            return True
        self.failures += 1
        return False

    def awake(self, patience: float) -> Deferred[bool]:
        """Wake it; True when it answers, False after `patience` seconds. Cancelling gives the waiting up."""
        waiter: Deferred[bool] = Deferred(self._given_up)
        self._waiting[waiter] = self._clock.callLater(patience, self._answer, waiter, False)
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._rouse()).addErrback(lambda failure: log.failure("waking", failure=failure))
        return waiter

    def _answer(self, waiter: Deferred[bool], outcome: bool) -> None:
        self._forget(waiter)
        waiter.callback(outcome)

    def _given_up(self, waiter: Deferred[bool]) -> None:
        self._forget(waiter)

    def _forget(self, waiter: Deferred[bool]) -> None:
        timer = self._waiting.pop(waiter, None)
        if timer is not None and timer.active():
            timer.cancel()

    async def _rouse(self) -> None:
        """As long as somebody waits: ask, send a packet now and then, ask again."""
        try:
            while self._waiting:
                if await self.look():
                    self.heard()  # also those who began to wait while it was asked
                    continue
                if self._waiting and self._clock.seconds() - self._sent >= PACKET_EVERY:
                    self._sent = self._clock.seconds()
                    log.info("the machine is asleep: sending a magic packet")
                    try:
                        self._wake()
                    except OSError as error:
                        log.error("could not send the magic packet: {error}", error=error)
                await deferLater(self._clock, LOOK)
        finally:
            self._looking = False


@define(eq=False)
class WakingProxy:
    """Serves every request. `patience` are the seconds a request waits for the machine."""

    host: WakeableHost
    endpoint: Endpoint
    relay: RequestForwarder
    patience: float = 60.0

    def serve(self, exchange: Exchange) -> Task:
        """Answer one request. It never fails."""
        return Task(self._guarded(exchange))

    async def _guarded(self, exchange: Exchange) -> None:
        try:
            await self._serve(exchange)
        except Exception as error:  # the edge of a floor: each failure becomes an answer here
            self._failed(error, exchange)

    def _failed(self, error: Exception, exchange: Exchange) -> None:
        if isinstance(error, ClientGone) or exchange.gone:
            return
        if exchange.sink.started:
            exchange.sink.abort()
            return
        if not isinstance(error, (HttpError, UpstreamUnreachable)):
            log.failure("a request failed")
        accept = exchange.head.first(b"accept") or b""
        status, headers, body = render(error, accept.decode("latin-1"), exchange.head.path.decode("latin-1"))
        _answer(exchange, status, headers, body)

    async def _serve(self, exchange: Exchange) -> None:
        path = exchange.head.path
        if path == b"/status":
            state = "waking" if self.host.waking else "ready" if await self.host.look() else "not ready"
            text = f"status: {state}\nfailures: {self.host.failures}\n"
            _answer(exchange, 200, [(b"Content-Type", b"text/plain")], text.encode())
        elif path == b"/api/events" or path in NEVER_WAKES:
            if await self.host.look():
                await self._carry(exchange)
            elif path == b"/api/events":
                _answer(exchange, 204, [], b"")
            else:
                raise HttpError(503, "the machine is asleep")
        elif exchange.head.method == b"GET" and (path in (b"/", b"/ui") or path.startswith(b"/ui/")):
            if await self.host.look():
                await self._carry(exchange)
            else:
                self.host.awake(self.patience).addErrback(lambda _: None)  # the page asks how it goes
                _answer(exchange, 200, [(b"Content-Type", b"text/html"), (b"Cache-Control", b"no-store")], PAGE)
        else:
            await self._held(exchange)

    async def _held(self, exchange: Exchange) -> None:
        """Wait for the machine, then carry. One that fell asleep a moment ago is waked and asked once more."""
        if not self.host.fresh:
            await self._waked(exchange)
        try:
            await self._carry(exchange)
        except UpstreamUnreachable as error:
            if error.sent or exchange.sink.started or not exchange.body.replayable:
                raise
            self.host.lost()
            await self._waked(exchange)
            await self._carry(exchange)

    async def _waked(self, exchange: Exchange) -> None:
        waiting = self.host.awake(self.patience)
        exchange.on_gone(waiting.cancel)
        try:
            ready = await waiting
        except BaseException:
            if exchange.gone:
                raise ClientGone()
            raise
        finally:
            exchange.forget(waiting.cancel)
        if not ready:
            raise HttpError(408, f"the machine did not wake up within {self.patience:g} s")

    async def _carry(self, exchange: Exchange) -> None:
        head = exchange.head
        headers = header_rules.to_local(head.headers, peer=exchange.peer)
        upstream = UpstreamTarget(self.endpoint, tls=self.endpoint.scheme == "https", name="the machine")
        rewritten = RequestHead(head.method, joined(self.endpoint, head.target), headers, head.version)
        await self.relay.carry(exchange, upstream, head=rewritten, body=exchange.body)
        self.host.heard()


def _answer(exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
    if exchange.gone:
        return
    framing: Headers = [] if status == 204 else [(b"Content-Length", b"%d" % len(body))]
    exchange.sink.head(status, responses.get(status, "").encode(), [*headers, *framing], raw=True, data=body)
    exchange.sink.finish()


def prober(send: SendRequest, endpoint: Endpoint) -> Callable[[], Deferred[bool]]:
    """What asks the machine once, over a new connection: one from before its sleep may be dead."""

    async def ask() -> bool:
        try:
            response = await send("GET", f"{endpoint}/wol-health", timeout=PROBE)
        except RequestFailed as error:  # refused, no route, silence: each is a machine that does not answer
            log.debug("no answer: {error}", error=error)
            return False
        return response.status < 500

    return lambda: Deferred.fromCoroutine(ask())


def begin(
    reactor: Any, listen: ListenAddress, endpoint: Endpoint, wake: Callable[[], None], patience: float
) -> Deferred[Any]:
    """Listen and serve. Fires with the port, or errbacks where the address is taken."""
    host = WakeableHost(reactor, prober(HttpClient(reactor), endpoint), wake)
    front = WakingProxy(host, endpoint, RequestForwarder(reactor, Pool(reactor)), patience)
    factory = ProxyServerFactory(lambda head: True, front.serve, Site(Resource()), reactor)
    return maybeDeferred(listen.endpoint(reactor).listen, factory)
