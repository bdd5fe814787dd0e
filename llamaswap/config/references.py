"""Checks of the names of models: aliases, preloads, peers, selectors, profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from llamaswap.config import urls
from llamaswap.config.decode import Decoder, zeros
from llamaswap.config.diagnostics import Diagnostics, did_you_mean
from llamaswap.config.field_types import SectionMapType
from llamaswap.config.lookup import NameIndex
from llamaswap.config.models import ready
from llamaswap.config.nodes import MappingNode, Node, is_null, kind_of
from llamaswap.config.policies.groups import Group
from llamaswap.config.routing import eviction_of
from llamaswap.config.schema.model import Model
from llamaswap.config.schema.routing import STRATEGIES, EvictionSettings, Peer, Profile, Selector
from llamaswap.config.secret import Secret


def with_aliases(models: Mapping[str, Model], report: Diagnostics) -> dict[str, Model]:
    """Check the explicit aliases of all models, then add those of setParamsByID."""
    owner: dict[str, str] = {}
    for model in models.values():
        for index, alias in enumerate(model.aliases):
            if alias in owner:
                report.error(
                    f"duplicate alias {alias!r} of model {model.id}, already an alias of {owner[alias]}",
                    f"models.{model.id}.aliases[{index}]",
                )
            owner.setdefault(alias, model.id)
    found: dict[str, Model] = {}
    for model in models.values():
        path = f"models.{model.id}.filters.setParamsByID"
        added: list[str] = []
        for key in model.filters.set_params_by_id:
            if key == model.id:
                continue
            if key in models:
                report.error(f"model {model.id}: setParamsByID key {key!r} is the ID of model {key}", path)
            elif owner.get(key, model.id) != model.id:
                report.error(f"duplicate alias {key!r}: setParamsByID of {model.id} and an alias of {owner[key]}", path)
            elif key not in owner:
                owner[key] = model.id
                added.append(key)
        found[model.id] = evolve(model, aliases=(*model.aliases, *added)) if added else model
    return found


def check_tags(
    models: Mapping[str, Model],
    names: NameIndex,
    groups: Mapping[str, Group],
    profiles: Mapping[str, Profile],
    report: Diagnostics,
) -> None:
    """Warn of each tag that is also another name, and say where a request for it goes."""
    pins = {pin for profile in profiles.values() for pin in profile.pins}
    seen: set[str] = set()
    for model in models.values():
        for index, tag in enumerate(model.tags):
            path = f"models.{model.id}.tags[{index}]"
            if not tag.strip():
                report.error(f"model {model.id}: a tag must not be blank", path)
            winners = (
                ("a pin of a profile", tag in pins, "the pin's target while the profile is active"),
                ("a selector", tag in names.selectors, "the selector"),
                ("a model ID", tag in names.models, "that model"),
                ("an alias", tag in names.aliases, f"model {names.aliases.get(tag)}"),
                ("a model of a peer", names.peer(tag) is not None, "the peer"),
                ("a group", tag in groups, "a member of the group"),
            )
            for kind, taken, winner in winners:
                if taken and tag not in seen:
                    report.warn(f"tag {tag!r} is also {kind}: a request for {tag!r} goes to {winner}", path)
                    break
            seen.add(tag)


def preloaded(given: Sequence[str], names: NameIndex, report: Diagnostics) -> tuple[str, ...]:
    """The IDs of the models to preload: each name is that of a model, or of a group or tag for all its members."""
    found: list[str] = []
    for index, name in enumerate(entry.strip() for entry in given):
        real = names.real(name)
        if real is not None:
            found.append(real)
        elif name in names.sets:
            found += names.sets[name]
        elif name:
            report.warn(
                f"{name!r} is neither a model nor a group nor a tag, ignored",
                f"hooks.on_startup.preload[{index}]",
                hint=did_you_mean(name, [*names.models, *names.aliases, *names.sets]),
            )
    return tuple(found)


def peers(node: Node | None, report: Diagnostics) -> dict[str, Peer]:
    """Read and check the `peers` section."""
    if node is None or is_null(node):
        return {}
    if not isinstance(node, MappingNode):
        report.error(f"peers must be a mapping of names to peers, not {kind_of(node)}", "peers")
        return {}
    decoder = Decoder(report)
    found: dict[str, Peer] = {}
    for peer_id, child in node.entries.items():
        path = f"peers.{peer_id}"
        if is_null(child):
            found[peer_id] = Peer(peer_id, **zeros(Peer))
            continue
        values = decoder.entry(SectionMapType(Peer), child, path)
        if values is not None:
            found[peer_id] = _peer(peer_id, values, path, report)
    return found


def _peer(peer_id: str, values: dict[str, Any], path: str, report: Diagnostics) -> Peer:
    if not values.get("proxy"):
        report.error(f"{path}: proxy is required", path, hint="give the peer's base URL")
    else:
        try:
            values["endpoint"] = urls.parse(values["proxy"])
            if values["endpoint"] is None:
                report.warn(f"{path}.proxy: {values['proxy']!r} is not an http:// or https:// address", f"{path}.proxy")
        except urls.UrlError as error:
            report.error(f"{path}: proxy URL {values['proxy']!r} is invalid: {error}", f"{path}.proxy")
    listed = values.get("models", ())
    values["auto"] = listed is None
    values["models"] = tuple(dict.fromkeys(listed or ()))
    if not (values["models"] or values["auto"]):
        report.error(f"{path}: models must not be empty", path, hint="list what the peer offers, or write auto")
    if values.get("api_key") == Secret(""):
        values["api_key"] = None
    peer = Peer(peer_id, **values)
    return evolve(peer, filters=ready(peer.filters))


def peers_that_lead_back(found: Mapping[str, Peer], port: int) -> list[str]:
    """The peers whose address is `port` of this machine, on which this server listens."""
    return [
        name
        for name, peer in sorted(found.items())
        if peer.endpoint is not None and peer.endpoint.on_this_machine and peer.endpoint.port == port
    ]


def check_peer_names(
    found: Mapping[str, Peer], names: NameIndex, profiles: Mapping[str, Profile], report: Diagnostics
) -> None:
    """Report a PEER/MODEL that is ambiguous, and aliases of peers that are or that lead nowhere."""
    seen: dict[str, tuple[str, str]] = {}
    pins = {pin for profile in profiles.values() for pin in profile.pins}
    for peer_id in sorted(found):
        for model in found[peer_id].models:
            name = f"{peer_id}/{model}"
            path = f"peers.{peer_id}.models"
            if name in seen:
                other = seen[name]
                report.error(
                    f"{name!r} is ambiguous: model {other[1]!r} of peer {other[0]!r} and {model!r} of {peer_id!r}", path
                )
                continue
            seen[name] = (peer_id, model)
            for kind in (*_kinds_of(name, names), *(["a profile's pin name"] if name in pins else [])):
                report.error(f"{name!r} is {kind}, but the name is reserved for model {model!r} of a peer", path)
    owner: dict[str, str] = {}
    for peer in found.values():
        for alias, model in peer.aliases.items():
            path = f"peers.{peer.id}.aliases.{alias}"
            if not alias.strip():
                report.error(f"peers.{peer.id}.aliases: a name must not be blank", f"peers.{peer.id}.aliases")
            if alias in owner:
                report.error(
                    f"duplicate alias {alias!r} of peer {peer.id}, already an alias of peer {owner[alias]}", path
                )
            owner.setdefault(alias, peer.id)
            for kind in _kinds_of(alias, names):
                report.error(f"alias {alias!r} of peer {peer.id} is already {kind}", path)
            others = [other.id for other in found.values() if alias in other.models]
            if alias in names.qualified:
                report.error(f"alias {alias!r} of peer {peer.id} is already a model of a peer", path)
            elif others:
                report.warn(
                    f"alias {alias!r} of peer {peer.id} is also a model of peer {others[0]}: a request for {alias!r} "
                    f"goes to {peer.id}",
                    path,
                )
            if not (peer.auto or model in peer.models):
                near = did_you_mean(model, peer.models)
                report.error(f"alias {alias!r} of peer {peer.id}: unknown model {model!r}", path, hint=near)


def _kinds_of(name: str, names: NameIndex) -> list[str]:
    """What a name means on this server, in words."""
    kinds = {"a model ID": names.models, "an alias": names.aliases, "a selector ID": names.selectors}
    return [kind for kind, known in kinds.items() if name in known]


def check_default_model(name: str, names: NameIndex, found: Mapping[str, Peer], report: Diagnostics) -> None:
    """`routing.defaultModel` must be the name of something that serves requests."""
    if not name or name in names.selectors or name in names.sets:
        return
    if names.base(name) is None and not _may_be_discovered(name, found):
        near = did_you_mean(name, [*names.models, *names.aliases, *names.qualified, *names.selectors, *names.sets])
        report.error(f"defaultModel: unknown model {name!r}", "routing.defaultModel", hint=near)


def check_selectors(
    selectors: Mapping[str, Selector],
    router: EvictionSettings,
    names: NameIndex,
    found: Mapping[str, Peer],
    report: Diagnostics,
) -> None:
    """Report the first error of each selector."""
    for selector in selectors.values():
        path = f"selectors.{selector.id}"
        fault = _selector_fault(selector, names)
        if not fault:
            targets = enumerate(selector.targets)
            faults = ((index, _target_fault(selector, target, selectors, names, found)) for index, target in targets)
            index, fault = next(((index, fault) for index, fault in faults if fault), (0, ""))
            if fault:
                path, fault = f"{path}.targets[{index}]", f"targets[{index}] {fault}"
        if not fault and selector.strategy == "spillover":
            fault = _spillover_fault(selector, router, names)
        if fault:
            report.error(f"selector {selector.id!r}: {fault}", path)


def _selector_fault(selector: Selector, names: NameIndex) -> str:
    if not selector.id.strip():
        return "the ID is empty"
    if selector.id in names.models:
        return f"{selector.id} is already a model ID"
    if selector.id in names.aliases:
        return f"{selector.id} is already an alias of model {names.aliases[selector.id]}"
    if not selector.strategy:
        return f"strategy is required, one of {', '.join(STRATEGIES)}"
    if selector.strategy not in STRATEGIES:
        return f"strategy {selector.strategy!r} is unknown, use one of {', '.join(STRATEGIES)}"
    return "" if selector.targets else "targets needs at least one entry"


def _target_fault(
    selector: Selector, target: str, selectors: Mapping[str, Selector], names: NameIndex, found: Mapping[str, Peer]
) -> str:
    if target in selectors:
        return f"{target!r} is a selector, and chaining selectors is unsupported"
    if names.base(target) is None and not _may_be_discovered(target, found):
        near = did_you_mean(target, [*names.models, *names.aliases, *names.qualified])
        return f"{target!r} is an unknown model" + (f" ({near})" if near else "")
    if selector.strategy == "warm" and names.real(target) is None:
        return f"{target!r} must be a local model, strategy warm knows only those"
    return ""


def _may_be_discovered(target: str, found: Mapping[str, Peer]) -> bool:
    """Whether a peer that is asked for its models may offer this one."""
    return any(peer.auto and target.startswith(f"{peer_id}/") for peer_id, peer in found.items())


def _spillover_fault(selector: Selector, router: EvictionSettings, names: NameIndex) -> str:
    if selector.spillover < 1:
        return "settings.spillover must be >= 1"
    resolved: list[str] = []
    local: list[str] = []
    for target in selector.targets:
        real = names.real(target)
        peer = None if real is not None else names.peer(target)
        name = real if real is not None else "/".join(peer) if peer else target
        if name in resolved:
            return f"targets has a duplicate: {name}"
        resolved.append(name)
        if real is not None:
            local.append(real)
    return eviction_of(router).conflict(local) if len(local) >= 2 else ""


def check_profiles(
    profiles: Mapping[str, Profile],
    selectors: Mapping[str, Selector],
    names: NameIndex,
    found: Mapping[str, Peer],
    report: Diagnostics,
) -> None:
    for profile_id, profile in profiles.items():
        path = f"profiles.{profile_id}"
        if not profile_id.strip():
            report.error("a profile's name must not be blank", "profiles")
        if not profile.pins:
            report.error(f"profile {profile_id!r}: pins needs at least one entry", path)
        for pin, target in profile.pins.items():
            if not pin.strip():
                report.error(f"profile {profile_id!r}: a pin's name must not be blank", f"{path}.pins")
            known = target in selectors or names.base(target) is not None or _may_be_discovered(target, found)
            if target and not known:
                near = did_you_mean(target, [*names.models, *names.aliases, *names.qualified, *selectors])
                report.error(
                    f"profile {profile_id!r}: pin {pin!r}: unknown model {target!r}", f"{path}.pins.{pin}", hint=near
                )
