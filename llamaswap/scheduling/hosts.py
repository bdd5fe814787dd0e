"""What the scheduler knows of hosts, and which of them may run a model.

A host is a machine with a name; "" is the machine that llamaswap itself runs on, `here` in the configuration. Sizes and
devices are those of one host, whose name stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import Factory, frozen

from llamaswap.config.schema.hosts import HERE, Place
from llamaswap.scheduling.memory import RAM, Ledger, in_words

MAX_NAMED = 4  # hosts in a message


@frozen
class FailedStart:
    """Why a host could not start a model. It is not tried there again before `until`."""

    reason: str
    until: float


@frozen
class HostFacts:
    """A host. `ledger` is its memory, with what was measured and learned there; `drained`: nothing new is loaded there.

    `awaited`: what an earlier llamaswap left there may still run, and it has not answered yet. `cached_models` have
    their weights in its page cache, `missing` names by model the file or program that it lacks; `failed` are the models
    that it could not start a moment ago; `unreachable`: its connection broke and it has not answered since, as if its
    agent had ended and its servers had not yet. Of this machine the scheduler has a ledger already, and it is always
    online, so only the other facts count.
    """

    name: str
    ledger: Ledger = Factory(lambda: Ledger({}))
    labels: Mapping[str, str] = Factory(dict)
    online: bool = True
    drained: bool = False
    awaited: bool = False
    unreachable: bool = False
    cached_models: frozenset[str] = frozenset()
    missing: Mapping[str, str] = Factory(dict)
    failed: Mapping[str, FailedStart] = Factory(dict)


def vanished(before: Mapping[str, HostFacts], now: Mapping[str, HostFacts]) -> list[str]:
    """The other hosts that were online before and are not now."""
    return sorted(
        name for name, one in before.items() if name and one.online and not (name in now and now[name].online)
    )


def shown(host: str) -> str:
    """The name of a host for messages."""
    return host or HERE


def obstacle_on(facts: HostFacts, model: str, place: Place) -> str:
    """Why nothing of this model can be loaded on a host, as the end of a sentence; "" if it can."""
    if not facts.online:
        return "is offline"
    if facts.drained:
        return "is drained"
    if lacking := facts.missing.get(model):
        return f"lacks {lacking}"
    if model in facts.failed:
        return f"could not start it: {facts.failed[model].reason}"
    if place.gpus or place.vram:
        gpus = [device.total for name, device in facts.ledger.devices.items() if name != RAM]
        if len(gpus) < place.gpus:
            return f"has {len(gpus)} GPUs"
        if sum(gpus) < place.vram:
            return f"has {in_words(sum(gpus))} of GPU memory"
    for label, value in place.labels.items():
        if facts.labels.get(label) != value:
            return f"has no label {label}: {value}"
    return ""


def candidates(hosts: Mapping[str, HostFacts], model: str, place: Place) -> list[str]:
    """The hosts that may run a model. Of those that are otherwise equal, the first one is to be chosen.

    Those with its weights in their page cache come first, then those that `place` lists, in its order; if it lists
    none, this machine and then the others by name.
    """
    if place.gpus or place.vram or place.labels or place.hosts:
        found = [
            name for name in allowed_by(hosts, place) if name in hosts and not obstacle_on(hosts[name], model, place)
        ]
    else:  # the same for any host, without a call for each of many
        found = [
            name
            for name, one in hosts.items()
            if one.online and not one.drained and not one.missing.get(model) and model not in one.failed
        ]
    cached = [name for name in found if model in hosts[name].cached_models]
    return [*cached, *(name for name in found if name not in cached)] if cached else found


def allowed_by(hosts: Mapping[str, HostFacts], place: Place) -> Iterable[str]:
    """The names of the hosts that `place` does not exclude by name; `hosts` are in the order of their names."""
    return ["" if name == HERE else name for name in place.hosts] if place.hosts else hosts


def obstacles(hosts: Mapping[str, HostFacts], model: str, place: Place) -> tuple[str, bool]:
    """Why no host can take a model, in words, and whether that may change soon: a host that may run it is not there."""
    allowed = list(allowed_by(hosts, place))
    found, absent = [], False
    for name in allowed:
        facts = hosts.get(name)
        absent = absent or facts is None or not facts.online
        why = "has not joined" if facts is None else obstacle_on(facts, model, place)
        if why:
            found.append(f"{shown(name)} {why}")
    more = [f"and {len(found) - MAX_NAMED} more hosts cannot run it"] if len(found) > MAX_NAMED else []
    return ", ".join(found[:MAX_NAMED] + more), absent
