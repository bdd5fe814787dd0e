"""What serves a request: a local model, or a model of a peer."""

from __future__ import annotations

from attrs import evolve, frozen

from llamaswap.config import Config, Model, Peer
from llamaswap.proxy.exchange import RequestHead
from llamaswap.wire import headers as header_rules


@frozen
class Target:
    """A model that may serve a request: a local `model`, or a `peer`'s that is called `peer_model` there.

    Both are None if nothing has this name. `load_refusal` says why the request must not load the model (None: it may),
    `bypass` that it is served beside the scheduler; `shows_loading` allows the loading stream.
    """

    name: str
    model: Model | None = None
    peer: Peer | None = None
    peer_model: str = ""
    load_refusal: str | None = None
    bypass: bool = False
    shows_loading: bool = False

    @property
    def unknown(self) -> bool:
        """Whether nothing has this name."""
        return self.model is None and self.peer is None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name by which a key may be allowed to use it."""
        if self.model is not None:
            return self.name, self.model.id
        return (self.name, f"{self.peer.id}/{self.peer_model}") if self.peer is not None else (self.name,)

    @property
    def own_name(self) -> str:
        """What its server or peer calls it."""
        if self.model is not None:
            return self.model.use_model_name or self.name
        return self.peer_model or self.name

    @classmethod
    def named(cls, config: Config, name: str) -> Target:
        """What a model's id, alias or peer name leads to."""
        real = config.real(name)
        if real is not None:
            return cls(name, config.models[real])
        found = config.peer(name)
        return cls(name) if found is None else cls(name, None, config.peers[found[0]], found[1])

    def of_request(self, head: RequestHead, load_refusal: str | None, *, shows_loading: bool = False) -> Target:
        """The target as it serves one request. A websocket that the model's configuration does not count bypasses the
        scheduler, and does not load the model."""
        if self.model is not None and self.model.compat.ignore_websockets and header_rules.is_websocket(head.headers):
            ignored = f"model {self.model.id} is not loaded; ignored websocket requests cannot start it"
            return evolve(self, load_refusal=ignored, bypass=True)
        if load_refusal is None and not shows_loading:
            return self
        return evolve(self, load_refusal=load_refusal, shows_loading=shows_loading)
