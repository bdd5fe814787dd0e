"""The models section: macros and ports are inserted, values are resolved and checked.

The state before the insertion of PORT is kept, so that a model can get another port.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import evolve, frozen

from llamaswap.config import command_line, macros, steps, urls
from llamaswap.config.decode import Decoder, zeros
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.macros import Expander, ExpansionBudget
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, is_null, kind_of
from llamaswap.config.schema import MINIMUM_HEALTH_CHECK_TIMEOUT, Config
from llamaswap.config.schema.model import (
    COMFYUI_MODEL,
    DEFAULT_PROXY,
    USE_GLOBAL_TTL,
    Compat,
    Filters,
    Model,
    SlotSettings,
    SuspendSettings,
)

COMFYUI_CONCURRENCY = 50  # its page requests dozens of files at once


@frozen
class ModelDraft:
    """A model with its macros inserted, but not ${PORT}. `tree` is None for a null entry."""

    id: str
    tree: MappingNode | None
    macros: Mapping[str, ScalarNode]
    known: frozenset[str]
    wants_port: bool

    def placed(self, port: int | None, budget: ExpansionBudget, report: Diagnostics) -> ModelDraft:
        """The model with PORT inserted."""
        if self.tree is None or port is None:
            return self
        expander = Expander({"PORT": macros.number(port)}, budget)
        return evolve(self, tree=_expanded(self.id, self.tree, expander, report))


def draft(
    model_id: str,
    node: Node,
    global_macros: macros.Macros,
    own: macros.Macros,
    budget: ExpansionBudget,
    report: Diagnostics,
) -> ModelDraft | None:
    """The model before the insertion of PORT; None if the entry is not a mapping."""
    path = f"models.{model_id}"
    if is_null(node):
        return ModelDraft(model_id, None, own, frozenset(), False)
    if not isinstance(node, MappingNode):
        report.error(f"{path} must be a mapping with a `cmd`, not {kind_of(node)}", path, node)
        return None
    entries = {name: child for name, child in node.entries.items() if name != "macros"}
    for name in ("cmd", "cmdStop"):
        command = entries.get(name)
        if isinstance(command, ScalarNode) and command.kind == "str":
            stripped = command_line.strip_comments(command.text)
            entries[name] = evolve(command, value=stripped, text=stripped)
    if entries.get("proxy") is None or is_null(entries["proxy"]):
        entries["proxy"] = evolve(macros.text(DEFAULT_PROXY), place=node.place)
    effective = macros.effective(model_id, global_macros, own)
    tree = _expanded(model_id, evolve(node, entries=entries), Expander(effective, budget), report)
    in_cmd, in_proxy = macros.uses(tree.get("cmd"), "PORT"), macros.uses(tree.get("proxy"), "PORT")
    if _is_blank(tree.get("cmd")) and in_proxy:
        report.error(
            f"model {model_id}: cmd is missing, and proxy uses ${{PORT}}",
            path,
            hint="set cmd to the command that starts its server, or proxy to the address of one that runs",
        )
        tree = evolve(tree, entries={**tree.entries, "proxy": macros.text("")})  # so that ${PORT} is not reported again
    elif in_proxy and not in_cmd:
        report.error(
            f"model {model_id}: proxy uses ${{PORT}} but cmd does not",
            f"{path}.proxy",
            hint="put ${PORT} into cmd, or set proxy to the address the server listens on",
        )
    return ModelDraft(model_id, tree, own, frozenset(effective), in_cmd)


def _is_blank(node: Node | None) -> bool:
    return node is None or is_null(node) or (isinstance(node, ScalarNode) and not node.text.strip())


def _expanded(model_id: str, tree: MappingNode, expander: Expander, report: Diagnostics) -> MappingNode:
    """The tree with macros inserted into its values and into the keys of filters.setParamsByID."""
    expanded = expander.node(tree)
    assert isinstance(expanded, MappingNode)
    filters = expanded.get("filters")
    by_id = filters.get("setParamsByID") if isinstance(filters, MappingNode) else None
    if not (isinstance(filters, MappingNode) and isinstance(by_id, MappingNode)):
        return expanded

    def clash(first: str, second: str, both: str) -> None:
        path = f"models.{model_id}.filters.setParamsByID"
        report.error(
            f"model {model_id}: setParamsByID keys {first!r} and {second!r} have the same value {both!r}", path, by_id
        )

    keyed = expander.keys(by_id, clash)
    filters = evolve(filters, entries={**filters.entries, "setParamsByID": keyed})
    return evolve(expanded, entries={**expanded.entries, "filters": filters})


def check_leftovers(drafted: ModelDraft, report: Diagnostics) -> None:
    """Report every placeholder that is left, except ${PID} in cmdStop and in the steps of sleep."""
    if drafted.tree is None:
        return
    path = f"models.{drafted.id}"
    for name, child in drafted.tree.entries.items():
        macros.check_leftovers(child, f"{path}.{name}", report, drafted.known, pid=name in ("cmdStop", "sleep"))
    filters = drafted.tree.get("filters")
    by_id = filters.get("setParamsByID") if isinstance(filters, MappingNode) else None
    if isinstance(by_id, MappingNode):
        for key in by_id.entries:
            for name in macros.LEFTOVER.findall(key)[:1]:
                message, where = macros.leftover(name, f"{path}.filters.setParamsByID", drafted.known)
                report.error(f"{message} (in the setParamsByID key {key!r})", where, by_id.where(key))


def model(drafted: ModelDraft, placed: ModelDraft, port: int | None, inherited: Config, report: Diagnostics) -> Model:
    """The record of a draft with its port; the aliases of setParamsByID are added later."""
    path = f"models.{placed.id}"
    tree = placed.tree
    values: dict[str, Any] = zeros(Model) if tree is None else Decoder(report).given(Model, tree, path)
    given_ttl = values.get("ttl", USE_GLOBAL_TTL)
    values["ttl"] = inherited.global_ttl if given_ttl == USE_GLOBAL_TTL else given_ttl
    values["unload_timeout"] = values.get("unload_timeout", 0.0) or inherited.unload_timeout
    values.setdefault("send_loading_state", inherited.send_loading_state)
    own_timeout = values.get("health_check_timeout", 0.0)
    values["health_check_timeout"] = (
        max(own_timeout, MINIMUM_HEALTH_CHECK_TIMEOUT) if own_timeout else inherited.health_check_timeout
    )
    values["concurrency_limit"] = max(values.get("concurrency_limit", 0), 0)
    values["env_policy"] = values.get("env_policy", "") or inherited.env_policy
    if placed.id == COMFYUI_MODEL:
        values["concurrency_limit"] = max(values["concurrency_limit"], COMFYUI_CONCURRENCY)
        values["compat"] = Compat(ignore_websockets=True)
    _check_sleep(placed.id, values.get("sleep", SuspendSettings()), report)
    _check_slots(placed.id, values.get("slots", SlotSettings()), values.get("cmd", ""), report)
    values["filters"] = ready(values.get("filters", Filters()))
    values["macros"] = {name: macros.value_of(macro) for name, macro in placed.macros.items()}
    values["endpoint"] = _endpoint(placed.id, values.get("proxy", ""), report)
    rebuild = None if port is None else partial(_rebuild, drafted, inherited)
    return Model(id=placed.id, port=port, rebuild=rebuild, **values)


def _rebuild(drafted: ModelDraft, inherited: Config, port: int) -> Model:
    report = Diagnostics()
    placed = drafted.placed(port, ExpansionBudget(), report)
    made = model(drafted, placed, port, inherited, report)
    report.raise_if_errors()
    others = (key for key in made.filters.set_params_by_id if key != made.id and key not in made.aliases)
    return evolve(made, aliases=(*made.aliases, *others))


def _check_sleep(model_id: str, given: SuspendSettings, report: Diagnostics) -> None:
    path = f"models.{model_id}.sleep"
    if bool(given.sleep) != bool(given.wake):
        present, missing = ("sleep", "wake") if given.sleep else ("wake", "sleep")
        report.error(f"model {model_id}: sleep has {present} but no {missing}", path, hint="give both")
    for name, listed in (("sleep", given.sleep), ("wake", given.wake)):
        for step in listed:
            problem = steps.problem_of(step)
            if problem:
                report.error(f"model {model_id}: sleep.{name} has {step!r}: {problem}", f"{path}.{name}")
    if given.sleep and given.timeout <= 0:
        report.error(f"model {model_id}: sleep.timeout must be more than 0s", f"{path}.timeout")


def _check_slots(model_id: str, given: SlotSettings, cmd: str, report: Diagnostics) -> None:
    path = f"models.{model_id}.slots"
    if not given.save:
        return
    if given.timeout <= 0:
        report.error(f"model {model_id}: slots.timeout must be more than 0s", f"{path}.timeout")
    if "--slot-save-path" not in cmd:
        report.warn(
            f"{path}: the server cannot save slots: its command has no --slot-save-path",
            path,
            hint="name a folder there",
        )


def ready(filters: Filters) -> Filters:
    """The filters as they are applied: without the parameter `model`, in ascending order."""
    names = {name.strip() for name in filters.strip_params_text.split(",")} - {"", "model"}
    return evolve(
        filters,
        strip_params=tuple(sorted(names)),
        set_params=_without_model(filters.set_params),
        set_params_by_id={name: _without_model(params) for name, params in filters.set_params_by_id.items()},
    )


def _without_model(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: params[name] for name in sorted(params) if name != "model"}


def _endpoint(model_id: str, proxy: str, report: Diagnostics) -> Endpoint | None:
    path = f"models.{model_id}.proxy"
    try:
        endpoint = urls.parse(proxy)
    except urls.UrlError as error:
        report.error(f"model {model_id}: proxy {proxy!r} is not a valid URL: {error}", path)
        return None
    if endpoint is None and proxy:
        report.warn(f"{path}: {proxy!r} is not an http:// or https:// address, so {model_id} cannot start", path)
    return endpoint
