"""The second listening socket, for clients that know only Ollama's own address."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import define, field
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.app.settings import IServiceReactor
from llamaswap.config.schema import OllamaSettings
from llamaswap.proxy.listen import ListenAddress
from llamaswap.upgrade.program import AdoptingReactor

log = Logger("llamaswap.app.service")


def listen_address(settings: OllamaSettings) -> ListenAddress | None:
    """The address of `ollama.listen`; None if there is none. Raises ValueError."""
    if not settings.enabled or not settings.listen:
        return None
    address = ListenAddress(settings.listen)
    if address.address is None or address.address[1] > 65535:
        raise ValueError(f"ollama.listen: {settings.listen}: must be host:port, such as 127.0.0.1:11434")
    return address


@define(eq=False)
class OllamaListener:
    """Opens, pauses and closes the second socket. It serves the same as the first.

    `address` is None if none was asked for; `given` is the socket (descriptor, address) that the program before an
    upgrade had.
    """

    reactor: IServiceReactor
    address: ListenAddress | None
    given: tuple[int, str] | None = None
    port: IListeningPort | None = field(default=None, init=False)

    def open(self, factory: IProtocolFactory, refused: Callable[[str, BaseException], None]) -> None:
        """Listen now. `refused(address, error)` is called if that is impossible."""
        given, self.given = self.given, None
        endpoint = None
        if given is not None and (self.address is None or self.address.text != given[1]):
            os.close(given[0])
        elif given is not None and self.address is not None:
            endpoint = AdoptingReactor(self.reactor, given[0]).endpoint(self.address)
        if self.address is None:
            return
        outcome: list[IListeningPort | Failure] = []
        try:
            (endpoint or self.address.endpoint(self.reactor)).listen(factory).addBoth(outcome.append)
        except (OSError, ValueError) as error:  # a name that is not found
            refused(self.address.text, error)
        for result in outcome:
            if isinstance(result, Failure):
                assert result.value is not None  # a real failure
                refused(self.address.text, result.value)
            else:
                self.port = result
                log.info("listening on http://{address} for clients of Ollama", address=self.address.text)

    @property
    def number(self) -> int | None:
        """The port's number; None if it does not listen."""
        return getattr(self.port.getHost(), "port", None) if self.port is not None else None

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        if (port := self._descriptor) is not None:
            port.stopReading()

    def resume(self) -> None:
        """Accept connections again."""
        if (port := self._descriptor) is not None:
            port.startReading()

    def handover(self) -> tuple[int, str] | None:
        """The socket for the next program of an upgrade."""
        port = self._descriptor
        return None if port is None or self.address is None else (port.fileno(), self.address.text)

    @property
    def _descriptor(self) -> FileDescriptor | None:
        port: object = self.port
        return port if isinstance(port, FileDescriptor) else None  # as all of Twisted's ports

    async def close(self) -> None:
        """Stop listening."""
        port, self.port = self.port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
