"""All routes of the admin site, group by group."""

from __future__ import annotations

from itertools import chain

from llamaswap.web import (
    activity,
    config_api,
    discovery,
    event_stream,
    hosts_api,
    hub_api,
    lease_api,
    listing,
    llama_router,
    lmstudio,
    loadtest,
    logs,
    mcp,
    mcp_servers,
    memory_api,
    model_list,
    models,
    ollama,
    ollama_models,
    openapi,
    peers,
    processes,
    profiles,
    proxy_routes,
    system,
    ui,
    usage,
)
from llamaswap.web.route import Route

MODULES = (
    proxy_routes,
    listing,
    processes,
    logs,
    profiles,
    peers,
    event_stream,
    activity,
    usage,
    system,
    hosts_api,
    memory_api,
    lease_api,
    model_list,
    models,
    llama_router,
    lmstudio,
    ollama,
    ollama_models,
    config_api,
    discovery,
    hub_api,
    loadtest,
    mcp,
    mcp_servers,
    openapi,
    ui,
)
ROUTES: tuple[Route, ...] = tuple(chain.from_iterable(module.route for module in MODULES))
