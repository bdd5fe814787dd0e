"""Checks of the names of models: aliases, preloads, peers, selectors, profiles."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from llamaswap.config import urls
from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.models import ready
from llamaswap.config.nodes import MappingNode, Node, is_null
from llamaswap.config.routing import eviction_of
from llamaswap.config.schema import Config
from llamaswap.config.schema.model import Model
from llamaswap.config.schema.routing import STRATEGIES, Peer, Profile, Selector
from llamaswap.config.secret import Secret

_SET = "a tag or a group, which cannot be a target; name a model"


def with_aliases(models: Mapping[str, Model], report: Diagnostics) -> dict[str, Model]:
    """Check the explicit aliases of all models, then add those of setParamsByID and
    systemPromptByID."""
    owner: dict[str, str] = {}
    for model in models.values():
        for index, alias in enumerate(model.aliases):
            path = f"models.{model.id}.aliases[{index}]"
            if alias in owner:
                message = f"duplicate alias {alias!r} of model {model.id}, already an alias of {owner[alias]}"
                report.error(message, path)
            elif alias in models:
                message = f"the alias {alias!r} of model {model.id} has no effect, because a model has this ID"
                report.warn(message, path, hint="remove it, or rename one of them")
            owner.setdefault(alias, model.id)
    found: dict[str, Model] = {}
    for model in models.values():
        added: list[str] = []
        for key in model.filters.ids:
            if key == model.id:
                continue
            setting = "setParamsByID" if key in model.filters.set_params_by_id else "systemPromptByID"
            path = f"models.{model.id}.filters.{setting}"
            if key in models:
                report.error(f"model {model.id}: {setting} key {key!r} is the ID of model {key}", path)
            elif owner.get(key, model.id) != model.id:
                report.error(f"duplicate alias {key!r}: {setting} of {model.id} and an alias of {owner[key]}", path)
            elif key not in owner:
                owner[key] = model.id
                added.append(key)
        found[model.id] = evolve(model, aliases=(*model.aliases, *added)) if added else model
    return found


def check(config: Config, report: Diagnostics) -> None:
    """Check the names by which peers, selectors, profiles, tags and `defaultModel` refer to models, and the name of the
    profile of the start."""
    _check_peer_names(config, report)
    _check_peer_aliases(config, report)
    for selector in config.selectors.values():
        _check_selector(selector, config, report)
    for profile_id, profile in config.profiles.items():
        _check_profile(profile_id, profile, config, report)
    name, served = config.routing.default_model, (*config.selectors, *config.names.sets)
    if name and name not in served and not _is_served(name, config):
        near = did_you_mean(name, [*_served(config), *served])
        report.error(f"defaultModel: unknown model {name!r}", "routing.defaultModel", hint=near)
    if config.routing.restore_default and config.real(name) is None:
        message = "restoreDefault has no effect: defaultModel does not name a local model"
        report.warn(message, "routing.restoreDefault", hint="set routing.defaultModel to a model's ID or alias")
    _check_tags(config, report)
    at_start = config.hooks.on_startup.profile
    if at_start and at_start not in config.profiles:
        path = "hooks.on_startup.profile"
        report.error(f"{path}: unknown profile {at_start!r}", path, hint=did_you_mean(at_start, config.profiles))


def _is_served(name: str, config: Config) -> bool:
    """Whether a model has this name, or a peer that is asked for its models may offer it."""
    discovered = (peer_id for peer_id, peer in config.peers.items() if peer.auto)
    return config.base(name) is not None or any(name.startswith(f"{peer_id}/") for peer_id in discovered)


def _served(config: Config) -> list[str]:
    """The names of models, for hints."""
    return [*config.models, *config.names.aliases, *config.names.qualified]


def _pins(config: Config) -> set[str]:
    return {pin for profile in config.profiles.values() for pin in profile.pins}


def _check_tags(config: Config, report: Diagnostics) -> None:
    """Warn of each tag that is also another name, and say where a request for it goes."""
    pins, groups, aliases = _pins(config), config.routing.router.settings.groups or {}, config.names.aliases
    seen: set[str] = set()
    for model in config.models.values():
        for index, tag in enumerate(model.tags):
            path = f"models.{model.id}.tags[{index}]"
            if not tag.strip():
                report.error(f"model {model.id}: a tag must not be blank", path)
            winners = (
                ("a pin of a profile", tag in pins, "the pin's target while the profile is active"),
                ("a selector", tag in config.selectors, "the selector"),
                ("a model ID", tag in config.models, "that model"),
                ("an alias", tag in aliases, f"model {aliases.get(tag)}"),
                ("a model of a peer", config.peer(tag) is not None, "the peer"),
                ("a group", tag in groups, "a member of the group"),
            )
            for kind, taken, winner in winners:
                if taken and tag not in seen:
                    report.warn(f"tag {tag!r} is also {kind}: a request for {tag!r} goes to {winner}", path)
                    break
            seen.add(tag)


def preloaded(config: Config, report: Diagnostics) -> tuple[str, ...]:
    """The IDs of the models to preload: each name is that of a model, or of a group or tag for all its members."""
    found: list[str] = []
    for index, name in enumerate(entry.strip() for entry in config.hooks.on_startup.preload):
        real = config.real(name)
        if real is not None:
            found.append(real)
        elif name in config.names.sets:
            found += config.members(name)
        elif name:
            report.warn(
                f"{name!r} is neither a model nor a group nor a tag, ignored",
                f"hooks.on_startup.preload[{index}]",
                hint=did_you_mean(name, [*config.models, *config.names.aliases, *config.names.sets]),
            )
    return tuple(found)


def peers(given: Mapping[str, Peer], node: Node | None, report: Diagnostics) -> dict[str, Peer]:
    """Check the peers and resolve their values, except those whose entry in the document is null."""
    entries = node.entries if isinstance(node, MappingNode) else {}
    null = {name for name, child in entries.items() if is_null(child)}
    return {name: peer if name in null else _peer(peer, report) for name, peer in given.items()}


def _peer(peer: Peer, report: Diagnostics) -> Peer:
    path = f"peers.{peer.id}"
    endpoint = None
    if not peer.proxy:
        report.error(f"{path}: proxy is required", path, hint="give the peer's base URL")
    else:
        try:
            endpoint = urls.parse(peer.proxy)
            if endpoint is None:
                report.warn(f"{path}.proxy: {peer.proxy!r} is not an http:// or https:// address", f"{path}.proxy")
        except urls.UrlError as error:
            report.error(f"{path}: proxy URL {peer.proxy!r} is invalid: {error}", f"{path}.proxy")
    listed: tuple[str, ...] | None = peer.models  # None for auto
    auto, models = listed is None, tuple(dict.fromkeys(listed or ()))
    if not (models or auto):
        report.error(f"{path}: models must not be empty", path, hint="list what the peer offers, or write auto")
    key = None if peer.api_key == Secret("") else peer.api_key
    return evolve(peer, endpoint=endpoint, auto=auto, models=models, api_key=key, filters=ready(peer.filters))


def peers_that_lead_back(found: Mapping[str, Peer], port: int) -> list[str]:
    """The peers whose address is `port` of this machine, on which this server listens."""
    return [
        name
        for name, peer in sorted(found.items())
        if peer.endpoint is not None and peer.endpoint.on_this_machine and peer.endpoint.port == port
    ]


def _check_peer_names(config: Config, report: Diagnostics) -> None:
    """Report a PEER/MODEL that is ambiguous."""
    seen: dict[str, tuple[str, str]] = {}
    pins = _pins(config)
    for peer_id in sorted(config.peers):
        for model in config.peers[peer_id].models:
            name = f"{peer_id}/{model}"
            path = f"peers.{peer_id}.models"
            if name in seen:
                other = seen[name]
                report.error(
                    f"{name!r} is ambiguous: model {other[1]!r} of peer {other[0]!r} and {model!r} of {peer_id!r}", path
                )
                continue
            seen[name] = (peer_id, model)
            for kind in (*_kinds_of(name, config), *(["a profile's pin name"] if name in pins else [])):
                report.error(f"{name!r} is {kind}, but the name is reserved for model {model!r} of a peer", path)


def _check_peer_aliases(config: Config, report: Diagnostics) -> None:
    """Report aliases of peers that are other names too or that lead nowhere."""
    owner: dict[str, str] = {}
    for peer in config.peers.values():
        for alias, model in peer.aliases.items():
            path = f"peers.{peer.id}.aliases.{alias}"
            if not alias.strip():
                report.error(f"peers.{peer.id}.aliases: a name must not be blank", f"peers.{peer.id}.aliases")
            if alias in owner:
                report.error(
                    f"duplicate alias {alias!r} of peer {peer.id}, already an alias of peer {owner[alias]}", path
                )
            owner.setdefault(alias, peer.id)
            for kind in _kinds_of(alias, config):
                report.error(f"alias {alias!r} of peer {peer.id} is already {kind}", path)
            if alias in (config.routing.router.settings.groups or {}):
                report.warn(
                    f"alias {alias!r} of peer {peer.id} is also a group: a request for {alias!r} goes to the peer", path
                )
            others = [other.id for other in config.peers.values() if alias in other.models]
            if alias in config.names.qualified:
                report.error(f"alias {alias!r} of peer {peer.id} is already a model of a peer", path)
            elif others:
                report.warn(
                    f"alias {alias!r} of peer {peer.id} is also a model of peer {others[0]}: a request for {alias!r} "
                    f"goes to {peer.id}",
                    path,
                )
            if not (peer.auto or model in peer.models):
                near = did_you_mean(model, peer.models) or (model and f"add it to peers.{peer.id}.models")
                report.error(f"alias {alias!r} of peer {peer.id}: unknown model {model!r}", path, hint=near)


def _kinds_of(name: str, config: Config) -> list[str]:
    """What a name means on this server, in words."""
    alias = f"an alias of model {config.names.aliases.get(name)}"
    kinds = {"a model ID": config.models, alias: config.names.aliases, "a selector ID": config.selectors}
    return [kind for kind, known in kinds.items() if name in known]


def _check_selector(selector: Selector, config: Config, report: Diagnostics) -> None:
    """Report the first error of a selector."""
    path = f"selectors.{selector.id}"
    fault = _selector_fault(selector, config)
    if not fault:
        faults = enumerate(_target_fault(selector, target, config) for target in selector.targets)
        index, fault = next(((index, fault) for index, fault in faults if fault), (0, ""))
        if fault:
            path, fault = f"{path}.targets[{index}]", f"targets[{index}] {fault}"
    if not fault and selector.strategy == "spillover":
        fault = _spillover_fault(selector, config)
    if fault:
        report.error(f"selector {selector.id!r}: {fault}", path)


def _selector_fault(selector: Selector, config: Config) -> str:
    if not selector.id.strip():
        return "the ID is empty"
    if selector.id in config.models:
        return f"{selector.id} is already a model ID"
    if selector.id in config.names.aliases:
        return f"{selector.id} is already an alias of model {config.names.aliases[selector.id]}"
    if not selector.strategy:
        return f"strategy is required, one of {', '.join(STRATEGIES)}"
    if selector.strategy not in STRATEGIES:
        return f"strategy {selector.strategy!r} is unknown, use one of {', '.join(STRATEGIES)}"
    return "" if selector.targets else "targets needs at least one entry"


def _target_fault(selector: Selector, target: str, config: Config) -> str:
    if target in config.selectors:
        return f"{target!r} is a selector, and chaining selectors is unsupported"
    if not _is_served(target, config):
        if config.members(target):
            return f"{target!r} is {_SET}"
        near = did_you_mean(target, _served(config))
        return f"{target!r} is an unknown model" + (f" ({near})" if near else "")
    if selector.strategy == "warm" and config.real(target) is None:
        return f"{target!r} must be a local model, strategy warm knows only those"
    return ""


def _spillover_fault(selector: Selector, config: Config) -> str:
    if selector.spillover < 1:
        return "settings.spillover must be >= 1"
    resolved: list[str] = []
    for target in selector.targets:
        name = config.real(target) or "/".join(config.peer(target) or (target,))
        if name in resolved:
            return f"targets has a duplicate: {name}"
        resolved.append(name)
    local = [name for name in resolved if name in config.models]
    return eviction_of(config.routing.router).conflict(local) if len(local) >= 2 else ""


def _check_profile(profile_id: str, profile: Profile, config: Config, report: Diagnostics) -> None:
    path = f"profiles.{profile_id}"
    if not profile_id.strip():
        report.error("a profile's name must not be blank", "profiles")
    if not profile.pins:
        report.error(f"profile {profile_id!r}: pins needs at least one entry", path)
    for pin, target in profile.pins.items():
        if not pin.strip():
            report.error(f"profile {profile_id!r}: a pin's name must not be blank", f"{path}.pins")
        if target and target not in config.selectors and not _is_served(target, config):
            near = did_you_mean(target, [*_served(config), *config.selectors])
            message = f"profile {profile_id!r}: pin {pin!r}: unknown model {target!r}"
            if config.members(target):
                near, message = "", f"profile {profile_id!r}: pin {pin!r}: {target!r} is {_SET}"
            report.error(message, f"{path}.pins.{pin}", hint=near)
