"""The parsed form of a `proxy` URL: the address of a server."""

from __future__ import annotations

from attrs import field, frozen

TOKEN_HEADER = "X-Llamaswap-Host-Token"  # of requests to an agent


@frozen
class Endpoint:
    """The parts of a base URL.

    `scheme` is "http" or "https", `host` without brackets, `path` without its trailing slash ("" for none),
    `query` without "?" (the target's own query, put before the request's). `token` is sent to the agent of another
    host, which passes the request on to a server there.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    query: str = ""
    token: str = field(default="", repr=False)

    @property
    def on_this_machine(self) -> bool:
        """Whether the host is a name or an address of the loopback interface."""
        return self.host.lower() in ("localhost", "::1", "0.0.0.0", "::") or self.host.startswith("127.")

    @property
    def address(self) -> tuple[str, str, int]:
        """What a connection to the server depends on."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """host[:port] for a Host header: IPv6 in brackets, without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"
