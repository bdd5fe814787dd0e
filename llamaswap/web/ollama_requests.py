"""The inference requests of the Ollama API, made into requests of the OpenAI API before their model is looked up."""

from __future__ import annotations

from functools import partial

from attrs import define, evolve
from twisted.logger import Logger

from llamaswap.errors import BadRequest, BodyTooLarge, UnknownModel
from llamaswap.observe.worker import RunBlocking
from llamaswap.proxy.exchange import Exchange
from llamaswap.routing.router import Router
from llamaswap.web.head_facts import HeadFacts
from llamaswap.web.ollama_sink import OllamaSink
from llamaswap.web.proxy_handler import ProxyHandler
from llamaswap.web.request_content import RequestContent
from llamaswap.web.target import Target
from llamaswap.wire.json_body import JsonBody
from llamaswap.wire.ollama import INFERENCE_PATHS, TranslatedRequest, translate
from llamaswap.wire.openai import encode

log = Logger()

OLLAMA_ROUTES = frozenset(path.encode() for path in INFERENCE_PATHS)
TRANSLATED_LIMIT = 64 << 20  # bytes of a body that is translated: it is parsed as a whole


@define(eq=False)
class OllamaRequests:
    """Translates requests. `handler` serves them; a large one is translated by `run`."""

    router: Router
    handler: ProxyHandler
    run: RunBlocking

    async def translated(self, exchange: Exchange, content: RequestContent) -> RequestContent:
        """The content in the terms of the OpenAI API; the response to the exchange will be translated back."""
        if content.json is None:
            raise BadRequest("the request's body is not a JSON object")
        if content.json.size > TRANSLATED_LIMIT:
            raise BodyTooLarge(TRANSLATED_LIMIT)
        work = partial(_translation, exchange.head.path.decode("latin-1"), content.json)
        request, body = await self.run(work) if content.json.large else work()
        if request.context is not None:
            log.debug(
                "{model}: num_ctx {context} has no effect, because the context length is set when a server starts",
                model=request.model,
                context=request.context,
            )
        clock, arrived = self.handler.clock, exchange.arrived
        began = self.handler.wall() - (clock.seconds() - arrived)
        now = lambda: began + (clock.seconds() - arrived)
        ollama = OllamaSink.install(exchange, request, began, now)
        return evolve(
            content, model=request.model, streaming=request.streaming, json=body, ollama=ollama, ttl=request.keep_alive
        )

    def unload(self, name: str, ollama: OllamaSink, facts: HeadFacts) -> None:
        """Unload the model of this name, or those of a selector, as soon as they are idle, and respond."""
        config = facts.config
        selector = config.selectors.get(name)
        targets = [Target.named(config, each) for each in (selector.targets if selector is not None else (name,))]
        for target in targets:
            facts.access.require_model(ollama.request.model or name, name, *target.names)
        if all(target.unknown for target in targets):
            raise UnknownModel(name)
        for model in (target.model for target in targets if target.model is not None):
            for copy in config.copies(model.id):
                self.router.keep_for(copy, 0.0)
        ollama.respond()


def _translation(path: str, body: JsonBody) -> tuple[TranslatedRequest, JsonBody | None]:
    request = translate(path, body.render())
    return request, JsonBody.parse(encode(request.body))
