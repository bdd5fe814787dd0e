"""`llamaswap wol`: an always-on proxy in front of a machine that sleeps. A request wakes it, waits, and is forwarded.

The machine is probed (`/wol-health`) only when a request needs it, and the answer counts for a few seconds. Without
requests nothing is open and nothing is polled, so the proxy does not keep the machine awake. Requests of monitors and
open pages do not wake it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Site

from llamaswap.app.settings import IServiceReactor
from llamaswap.config.endpoints import Endpoint
from llamaswap.errors import ClientGone, UpstreamUnreachable
from llamaswap.http_client import HttpClient, RequestFailed, SendRequest
from llamaswap.proxy.exchange import Exchange, RequestHead
from llamaswap.proxy.forward import RequestForwarder
from llamaswap.proxy.listen import ListenAddress
from llamaswap.proxy.pool import Pool
from llamaswap.proxy.server_factory import ProxyServerFactory
from llamaswap.proxy.task import Task
from llamaswap.proxy.upstream import UpstreamTarget
from llamaswap.web.error_response import ErrorSender, send_response
from llamaswap.web.errors import HttpError, render
from llamaswap.web.upstream_request import joined
from llamaswap.wire import headers as header_rules

log = Logger()

TRUST_TIME = 5.0  # seconds for which an answer of the machine counts: no probe before each request of a busy time
POLL_INTERVAL = 0.25  # seconds between two probes of a machine that wakes
PACKET_INTERVAL = 5.0  # seconds between magic packets: one may be lost, and more of them wake nothing sooner
PROBE_TIMEOUT = 1.0  # seconds that a machine that is awake may take to answer
NEVER_WAKES = (b"/health", b"/wol-health", b"/readyz", b"/metrics", b"/api/events")

PAGE = b"""<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Waking up</title>
<style>body{font:16px system-ui;display:grid;place-items:center;min-height:90vh;color-scheme:light dark}</style>
<p>The machine is waking up; this page reloads by itself.</p>
<script>
setInterval(async () => {
  try { if ((await (await fetch("/status")).text()).startsWith("status: ready")) location.reload() } catch {}
}, 1000)
</script>
"""


def magic_packet(mac: str) -> bytes:
    """Six times ff, sixteen times the address. Raises ValueError if `mac` is not a hardware address."""
    digits = re.sub(r"[:.\-]", "", mac)
    if not re.fullmatch(r"[0-9A-Fa-f]{12}", digits):
        raise ValueError(f"{mac}: not a hardware address such as 01:23:45:67:89:ab")
    return b"\xff" * 6 + bytes.fromhex(digits) * 16


def broadcaster(mac: str, address: str = "255.255.255.255", port: int = 9) -> Callable[[], None]:
    """A function that sends the packet to every machine of the network."""
    packet = magic_packet(mac)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            line.setblocking(False)
            line.sendto(packet, (address, port))

    return send


@define(eq=False)
class WakeableHost:
    """The machine. `probe` asks whether it answers, `send_packet` wakes it."""

    _clock: IReactorTime
    _probe: Callable[[], Deferred[bool]]
    _send_packet: Callable[[], None]
    failures: int = field(default=0, init=False)
    _answered_at: float = field(default=float("-inf"), init=False)
    _probed_at: float = field(default=float("-inf"), init=False)
    _packet_at: float = field(default=float("-inf"), init=False)
    _waking: int = field(default=0, init=False)
    _probing: list[Deferred[bool]] = field(factory=list, init=False)

    @property
    def known_awake(self) -> bool:
        """Whether it answered a moment ago."""
        return self._clock.seconds() - self._answered_at < TRUST_TIME

    @property
    def waking(self) -> bool:
        """Whether a request waits for it."""
        return self._waking > 0

    def answered(self) -> None:
        """It answered a request or a probe."""
        self._answered_at = self._clock.seconds()
        self.failures = 0

    def lost(self) -> None:
        """It did not answer a request: earlier answers count no more."""
        self._answered_at = float("-inf")

    def is_awake(self) -> Deferred[bool]:
        """Whether it is awake; probes if that is not known, once for all callers. Never wakes it."""
        if self.known_awake or self._clock.seconds() - self._probed_at < POLL_INTERVAL:
            return succeed(self.known_awake)
        caller: Deferred[bool] = Deferred(self._probing.remove)
        self._probing.append(caller)
        if len(self._probing) == 1:
            maybeDeferred(self._probe).addCallbacks(self._probed, lambda failure: self._probed(False))
        return caller

    def _probed(self, awake: bool) -> None:
        self._probed_at = self._clock.seconds()
        if awake:
            self.answered()
        else:
            self.failures += 1
        callers, self._probing = self._probing, []
        for caller in callers:
            caller.callback(awake)

    async def wake(self, timeout: float) -> bool:
        """Wake it; whether it answers within `timeout` seconds."""
        deadline = self._clock.seconds() + timeout
        self._waking += 1
        try:
            while not await self.is_awake():
                if self._clock.seconds() >= deadline:
                    return False
                if self._clock.seconds() - self._packet_at >= PACKET_INTERVAL:
                    self._packet_at = self._clock.seconds()
                    log.info("the machine is asleep: sending a magic packet")
                    try:
                        self._send_packet()
                    except OSError as error:
                        log.error("could not send the magic packet: {error}", error=error)
                await deferLater(self._clock, POLL_INTERVAL)
            return True
        finally:
            self._waking -= 1


@define(eq=False)
class WakingProxy:
    """Serves every request. `timeout` are the seconds that a request waits for the machine."""

    host: WakeableHost
    endpoint: Endpoint
    forwarder: RequestForwarder
    timeout: float = 60.0

    def serve(self, exchange: Exchange) -> Task:
        """Answer one request; never fails."""
        return Task(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._respond(exchange)
        except Exception as error:  # each failure becomes a response here
            if not isinstance(error, (ClientGone, HttpError, UpstreamUnreachable)):
                log.failure("a request failed")
            ErrorSender(render).send(exchange, error, exchange.head.path.decode("latin-1"))

    async def _respond(self, exchange: Exchange) -> None:
        path = exchange.head.path
        is_page = exchange.head.method == b"GET" and (path in (b"/", b"/ui") or path.startswith(b"/ui/"))
        if path == b"/status":
            state = "waking" if self.host.waking else "ready" if await self.host.is_awake() else "not ready"
            text = f"status: {state}\nfailures: {self.host.failures}\n"
            send_response(exchange, 200, [(b"Content-Type", b"text/plain")], text.encode())
        elif not is_page and path not in NEVER_WAKES:
            await self._wake_and_forward(exchange)
        elif await self.host.is_awake():
            await self._forward(exchange)
        elif is_page:
            Deferred.fromCoroutine(self.host.wake(self.timeout)).addErrback(
                lambda failure: log.failure("waking the machine", failure)
            )
            send_response(exchange, 200, [(b"Content-Type", b"text/html"), (b"Cache-Control", b"no-store")], PAGE)
        elif path == b"/api/events":
            send_response(exchange, 204, [], b"")
        else:
            raise HttpError(503, "the machine is asleep")

    async def _wake_and_forward(self, exchange: Exchange) -> None:
        """A machine that fell asleep a moment ago is woken, and gets the request once more."""
        if not self.host.known_awake:
            await self._wake(exchange)
        try:
            await self._forward(exchange)
        except UpstreamUnreachable as error:
            if error.sent or exchange.sink.started or not exchange.body.replayable:
                raise
            self.host.lost()
            await self._wake(exchange)
            await self._forward(exchange)

    async def _wake(self, exchange: Exchange) -> None:
        waking = Deferred.fromCoroutine(self.host.wake(self.timeout))
        exchange.on_gone(waking.cancel)
        try:
            awake = await waking
        except CancelledError:
            raise ClientGone() from None
        finally:
            exchange.forget(waking.cancel)
        if not awake:
            raise HttpError(408, f"the machine did not wake up within {self.timeout:g} s")

    async def _forward(self, exchange: Exchange) -> None:
        head = exchange.head
        headers = header_rules.to_local(head.headers, socket_address=exchange.client_address)
        upstream = UpstreamTarget(self.endpoint, name="the machine")
        rewritten = RequestHead(head.method, joined(self.endpoint, head.target), headers, head.version)
        await self.forwarder.forward(exchange, upstream, head=rewritten, body=exchange.body)
        self.host.answered()


def probe_of(send: SendRequest, endpoint: Endpoint) -> Callable[[], Deferred[bool]]:
    """A probe of the machine over a new connection each time: one from before its sleep may be dead."""

    async def probe() -> bool:
        try:
            response = await send("GET", f"{endpoint}/wol-health", timeout=PROBE_TIMEOUT)
        except RequestFailed as error:  # refused, no route, silence
            log.debug("no answer: {error}", error=error)
            return False
        return response.status < 500

    return lambda: Deferred.fromCoroutine(probe())


def listen_and_serve(
    reactor: IServiceReactor, listen: ListenAddress, endpoint: Endpoint, send_packet: Callable[[], None], timeout: float
) -> Deferred[IListeningPort]:
    """Fires with the listening port, or fails if the address is taken."""
    host = WakeableHost(reactor, probe_of(HttpClient(reactor), endpoint), send_packet)
    proxy = WakingProxy(host, endpoint, RequestForwarder(reactor, Pool(reactor)), timeout)
    factory = ProxyServerFactory(lambda head: True, proxy.serve, Site(Resource()), reactor)
    return maybeDeferred(listen.endpoint(reactor).listen, factory)
