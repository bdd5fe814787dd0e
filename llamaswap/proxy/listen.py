"""Where the service listens: `host:port`, `:port`, `[v6]:port` or a Twisted endpoint string, with or without TLS.

Turns the text of the command line into a server endpoint; it does not know what is served there.
"""

from __future__ import annotations

import errno
import re
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.endpoints import (
    SSL4ServerEndpoint,
    TCP4ServerEndpoint,
    TCP6ServerEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IStreamServerEndpoint

if TYPE_CHECKING:
    from twisted.internet.ssl import ContextFactory

ADDRESS = re.compile(r"^(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d+)$")
PLUGINS = frozenset(("tcp", "tcp4", "tcp6", "unix", "systemd", "stdio"))  # tcp:80 is an endpoint, not a host
BACKLOG = 1024  # connections that the kernel queues while the reactor is busy


@frozen
class ListenAddress:
    """The address on the command line: `text` as given. The two PEM files are both set or both empty."""

    text: str
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def secure(self) -> bool:
        """Whether it listens with TLS."""
        return bool(self.cert_file) or self.text.startswith("ssl:")

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port), or None for an endpoint string."""
        found = ADDRESS.match(self.text)
        if found is None or found["host"] in PLUGINS:
            return None
        return found["v6"] or found["host"] or "", int(found["port"])

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can connect; an address that cannot be interpreted counts as open."""
        if self.address is None:
            return self.text.startswith(("unix:", "tcp:")) and (
                self.text.startswith("unix:") or "interface=127." in self.text or "interface=localhost" in self.text
            )
        host = self.address[0]
        if not host:
            return False
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
        except OSError:
            return False
        return bool(found) and all(ip_address(str(one).partition("%")[0]).is_loopback for one in found)

    def endpoint(self, reactor: Any) -> IStreamServerEndpoint:
        """The endpoint to listen on. Raises ValueError with an explanation, OSError for files and names that cannot be
        read."""
        if self.address is None:
            if self.text.isdecimal():
                raise ValueError(f"--listen {self.text}: a port alone is written :{self.text}")
            try:
                endpoint: IStreamServerEndpoint = serverFromString(reactor, self.text)
            except Exception as error:  # endpoint parsers raise arbitrary exceptions for a bad value
                raise ValueError(
                    f"--listen {self.text}: neither host:port nor a Twisted endpoint string: {error}"
                ) from error
            return endpoint
        host, port = self.address
        if port > 65535:
            raise ValueError(f"--listen {self.text}: a port is at most 65535")
        try:
            interface = resolved(host)
        except socket.gaierror as error:
            raise ValueError(f"--listen {self.text}: {error.strerror}") from error
        if self.cert_file and self.key_file:
            options = tls_options(self.cert_file, self.key_file)
            return SSL4ServerEndpoint(reactor, port, options, backlog=BACKLOG, interface=interface)
        if ":" in interface:
            return TCP6ServerEndpoint(reactor, port, backlog=BACKLOG, interface=interface)
        return TCP4ServerEndpoint(reactor, port, backlog=BACKLOG, interface=interface)


def refusal(
    where: str, error: BaseException | None, hint: str = "is it running already? -listen HOST:PORT takes another"
) -> str:
    """Why the service cannot listen at `where`, and what to do; `hint` if the port is taken."""
    cause = getattr(error, "socketError", error)  # the cause of Twisted's CannotListenError
    words = getattr(cause, "strerror", None) or str(error)
    taken = getattr(cause, "errno", None) == errno.EADDRINUSE
    return f"cannot listen on {where}: {words}" + (f"; {hint}" if taken else "")


def resolved(host: str) -> str:
    """A literal address to bind. The empty host means every address, of IPv6 and IPv4 if the system has both."""
    if not host:
        return "::" if socket.has_dualstack_ipv6() else ""
    entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # IPv4 first: some clients try nothing else for "localhost".
    entries.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(entries[0][4][0])


def tls_options(cert_file: str, key_file: str) -> ContextFactory:
    """A server context factory from PEM files: our certificate first, then its chain. TLS 1.2 and newer.

    Twisted's own CertificateOptions takes the chain apart and does not agree with every pyOpenSSL (handshakes end in
    an internal error with 26.4); the library's chain loader does all that is needed.
    """
    try:
        from OpenSSL import SSL
        from twisted.internet.ssl import ContextFactory
    except ImportError as error:
        raise ValueError("TLS needs pyOpenSSL and service-identity: pip install 'llamaswap[tls]'") from error

    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    for option, path, use in (
        ("--tls-cert-file", cert_file, context.use_certificate_chain_file),
        ("--tls-key-file", key_file, context.use_privatekey_file),
    ):
        with open(path, "rb"):  # a missing or unreadable file raises its own error
            pass
        try:
            use(path)
        except SSL.Error as error:
            raise ValueError(f"{option} {path}: not usable (PEM is expected): {error}") from error
    try:
        context.check_privatekey()
    except SSL.Error as error:
        raise ValueError(f"--tls-key-file {key_file} is not the key of --tls-cert-file {cert_file}") from error

    class Prepared(ContextFactory):
        """Gives every connection the same context."""

        isClient = 0

        def getContext(self) -> SSL.Context:
            return context

    return Prepared()
