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
from llamaswap.config.macros import Expander, ExpansionBudget, Macros
from llamaswap.config.nodes import MappingNode, Node, ScalarNode, SourceLocation, is_null, kind_of
from llamaswap.config.schema import MINIMUM_HEALTH_CHECK_TIMEOUT, Config
from llamaswap.config.schema.hosts import check_kept, check_place
from llamaswap.config.schema.memory import NO_CHOICE
from llamaswap.config.schema.model import COMFYUI_MODEL, DEFAULT_PROXY, USE_GLOBAL_TTL, Compat, Filters, Model

# The placeholder that may be left in the value of a key: it is known when the server starts, or stops.
INSERTED_LATER = {"cmdStop": "PID", "sleep": "PID", "cmd": "GPUS", "env": "GPUS"}
GPUS_PLACEHOLDER = "${GPUS}"
COMFYUI_CONCURRENCY = 50  # its page requests dozens of files at once


SET_CMD = "set cmd to the command that starts its server, or proxy to the address of one that runs"


@frozen
class ModelDraft:
    """A model whose values are not decoded yet. `tree` is None for an entry that is null or not a mapping.

    `macros` are its own, `known` the names of all that it may use. `template` is the tree before the insertion of PORT.
    """

    id: str
    tree: MappingNode | None
    macros: Mapping[str, ScalarNode]
    known: frozenset[str] = frozenset()
    template: MappingNode | None = None
    wants_port: bool = False
    port: int | None = None

    def expanded(self, global_macros: Macros, budget: ExpansionBudget, report: Diagnostics) -> ModelDraft:
        """The model with its macros inserted, but not PORT."""
        if self.tree is None:
            return self
        path = f"models.{self.id}"
        entries = {name: child for name, child in self.tree.entries.items() if name != "macros"}
        for name in ("cmd", "cmdStop"):
            command = entries.get(name)
            if isinstance(command, ScalarNode) and command.kind == "str":
                stripped = command_line.strip_comments(command.text)
                entries[name] = evolve(command, value=stripped, text=stripped)
        given_proxy = entries.get("proxy") is not None and not is_null(entries["proxy"])
        if not given_proxy:
            entries["proxy"] = evolve(macros.text(DEFAULT_PROXY), place=self.tree.place)
        effective = macros.effective(self.id, global_macros, self.macros)
        tree = self._inserted(evolve(self.tree, entries=entries), Expander(effective, budget), report)
        in_cmd, in_proxy = macros.uses(tree.get("cmd"), "PORT"), macros.uses(tree.get("proxy"), "PORT")
        if _is_blank(tree.get("cmd")) and in_proxy:
            report.error(
                f"model {self.id}: cmd is missing" + (", and proxy uses ${PORT}" if given_proxy else ""),
                path,
                hint=SET_CMD,
            )
            # so that ${PORT} is not reported again
            tree = evolve(tree, entries={**tree.entries, "proxy": macros.text("")})
        elif in_proxy and not in_cmd and given_proxy:
            report.error(
                f"model {self.id}: proxy uses ${{PORT}} but cmd does not",
                f"{path}.proxy",
                hint="put ${PORT} into cmd, or set proxy to the address the server listens on",
            )
        elif in_proxy and not in_cmd:
            report.error(
                f"model {self.id}: cmd has no ${{PORT}}, so the address of its server is unknown",
                path,
                hint="put ${PORT} into cmd, or set proxy to the address the server listens on",
            )
            tree = evolve(tree, entries={**tree.entries, "proxy": macros.text("")})
        return evolve(self, tree=tree, template=tree, known=frozenset(effective), wants_port=in_cmd)

    def placed(self, port: int, budget: ExpansionBudget, report: Diagnostics) -> ModelDraft:
        """The model with PORT inserted."""
        assert self.template is not None, "only a model that uses ${PORT} gets one"
        expander = Expander({"PORT": macros.number(port)}, budget)
        return evolve(self, tree=self._inserted(self.template, expander, report), port=port)

    def _inserted(self, tree: MappingNode, expander: Expander, report: Diagnostics) -> MappingNode:
        """The tree with macros inserted into its values and into the keys of filters.setParamsByID."""
        expanded = expander.node(tree)
        assert isinstance(expanded, MappingNode)
        filters, by_id = expanded.get("filters"), _params_by_id(expanded)
        if not isinstance(filters, MappingNode) or by_id is None:
            return expanded
        places: dict[str, SourceLocation] = {}
        entries: dict[str, Node] = {}
        origin: dict[str, str] = {}
        for name, child in by_id.entries.items():
            key = expander.scalar(evolve(macros.text(name), place=by_id.where(name))).text
            if key in entries:
                report.error(
                    f"model {self.id}: setParamsByID keys {origin[key]!r} and {name!r} have the same value {key!r}",
                    f"models.{self.id}.filters.setParamsByID",
                    by_id,
                )
            else:
                entries[key], places[key], origin[key] = child, by_id.where(name), name
        keyed = evolve(by_id, entries=entries, places=places)
        filters = evolve(filters, entries={**filters.entries, "setParamsByID": keyed})
        return evolve(expanded, entries={**expanded.entries, "filters": filters})

    def check_leftovers(self, report: Diagnostics) -> None:
        """Report every placeholder that is left, except those of INSERTED_LATER."""
        if self.tree is None:
            return
        path = f"models.{self.id}"
        for name, child in self.tree.entries.items():
            macros.check_leftovers(child, f"{path}.{name}", report, self.known, INSERTED_LATER.get(name, ""))
        by_id, path = _params_by_id(self.tree) or MappingNode({}), f"{path}.filters.setParamsByID"
        for key in by_id.entries:
            for name in macros.LEFTOVER.findall(key)[:1]:
                message = f"{macros.leftover(name, path, self.known)} (in the setParamsByID key {key!r})"
                report.error(message, path, by_id.where(key))


def drafts(node: Node | None, report: Diagnostics) -> dict[str, ModelDraft]:
    """The entries of the models section in ascending order, with nothing inserted, and their own macros."""
    if node is None or is_null(node):
        return {}
    if not isinstance(node, MappingNode):
        report.error(f"models must be a mapping of IDs to models, not {kind_of(node)}", "models", node)
        return {}
    found: dict[str, ModelDraft] = {}
    for name in sorted(node.entries):
        entry, path = node.entries[name], f"models.{name}"
        tree = entry if isinstance(entry, MappingNode) else None
        if tree is None and not is_null(entry):
            report.error(f"{path} must be a mapping with a `cmd`, not {kind_of(entry)}", path, entry)
        elif tree is None:
            report.warn(f"model {name}: cmd is missing, so it cannot be loaded", path, entry, hint=SET_CMD)
        block = tree.get("macros") if tree is not None else None
        found[name] = ModelDraft(name, tree, macros.declared(block, f"{path}.macros", f"model {name}: ", report))
    return found


def _params_by_id(tree: MappingNode) -> MappingNode | None:
    """The mapping at filters.setParamsByID."""
    filters = tree.get("filters")
    by_id = filters.get("setParamsByID") if isinstance(filters, MappingNode) else None
    return by_id if isinstance(by_id, MappingNode) else None


def _is_blank(node: Node | None) -> bool:
    return node is None or is_null(node) or (isinstance(node, ScalarNode) and not node.text.strip())


def model(draft: ModelDraft, inherited: Config, report: Diagnostics, gpu_ids: tuple[int, ...] = ()) -> Model:
    """The record of a draft on these GPUs; the aliases of its filters are added later."""
    path = f"models.{draft.id}"
    values: dict[str, Any] = zeros(Model) if draft.tree is None else Decoder(report).given(Model, draft.tree, path)
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
    if draft.id == COMFYUI_MODEL:
        values["concurrency_limit"] = max(values["concurrency_limit"], COMFYUI_CONCURRENCY)
        values["compat"] = Compat(ignore_websockets=True)
    values["filters"] = ready(values.get("filters", Filters()))
    values["macros"] = {name: macros.value_of(macro) for name, macro in draft.macros.items()}
    values["endpoint"] = _endpoint(draft.id, values.get("proxy", ""), report)
    _place_on_gpus(draft.id, values, gpu_ids, inherited, report)
    rebuild = None if draft.port is None and not values.get("gpus") else partial(_rebuild, draft, inherited)
    made = Model(id=draft.id, port=draft.port, rebuild=rebuild, texts=partial(_texts, draft), **values)
    _check_sleep(made, report)
    _check_slots(made, report)
    runs_elsewhere = made.endpoint is not None and not made.endpoint.on_this_machine
    check_place(made.place, f"models.{draft.id}.place", inherited.hosts, runs_elsewhere, report)
    if inherited.hosts is not None and not runs_elsewhere:
        check_kept(made.id, made.place, {"sleep": made.sleep.sleep, "slots": made.slots.save}, report)
    return made


def _texts(draft: ModelDraft) -> Mapping[str, Any]:
    """The values of a draft before the insertion of PORT and GPUS."""
    tree = draft.template or draft.tree
    return {} if tree is None else Decoder(Diagnostics()).given(Model, tree, f"models.{draft.id}")


def _rebuild(draft: ModelDraft, inherited: Config, port: int | None, gpu_ids: tuple[int, ...]) -> Model:
    report = Diagnostics()
    placed = draft if port is None else draft.placed(port, ExpansionBudget(), report)
    made = model(placed, inherited, report, gpu_ids)
    report.raise_if_errors()
    others = (key for key in made.filters.ids if key != made.id and key not in made.aliases)
    return evolve(made, aliases=(*made.aliases, *others))


def _place_on_gpus(
    model_id: str, values: dict[str, Any], ids: tuple[int, ...], inherited: Config, report: Diagnostics
) -> None:
    """Insert GPUS into the command and the environment, and hide all other GPUs if the model has `gpus`."""
    gpus, cmd, env = values.get("gpus", NO_CHOICE), values.get("cmd", ""), values.get("env", ())
    path = f"models.{model_id}"
    uses = [name for name, value in (("cmd", cmd), ("env", "\n".join(env))) if GPUS_PLACEHOLDER in value]
    if uses and not gpus:
        report.warn(
            f"{path}.{uses[0]}: ${{GPUS}} is empty, because the model has no `gpus`",
            f"{path}.{uses[0]}",
            hint="set gpus: auto, or a list such as [0, 1]",
        )
    if gpus and not gpus.ids and inherited.routing.memory.mode != "on":
        report.warn(
            f"{path}.gpus: no GPUs are chosen without `routing.memory: on`, so the server sees all GPUs",
            f"{path}.gpus",
            hint="set routing.memory: on, or list the GPUs, such as [0, 1]",
        )
    ids = ids or gpus.ids
    text = ",".join(map(str, ids))
    env = tuple(entry.replace(GPUS_PLACEHOLDER, text) for entry in env)
    if ids:
        named = {entry.partition("=")[0] for entry in env}
        visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": text, "ROCR_VISIBLE_DEVICES": text}
        env += tuple(f"{name}={value}" for name, value in visible.items() if name not in named)
    values.update(cmd=cmd.replace(GPUS_PLACEHOLDER, text), env=env, gpu_ids=ids)


def _check_sleep(model: Model, report: Diagnostics) -> None:
    path, given = f"models.{model.id}.sleep", model.sleep
    if bool(given.sleep) != bool(given.wake):
        present, missing = ("sleep", "wake") if given.sleep else ("wake", "sleep")
        report.error(f"model {model.id}: sleep has {present} but no {missing}", path, hint="give both")
    for name, listed in (("sleep", given.sleep), ("wake", given.wake)):
        for step in listed:
            problem = steps.problem_of(step)
            if problem:
                report.error(f"model {model.id}: sleep.{name} has {step!r}: {problem}", f"{path}.{name}")
    if given.sleep and given.timeout <= 0:
        report.error(f"model {model.id}: sleep.timeout must be more than 0s", f"{path}.timeout")


def _check_slots(model: Model, report: Diagnostics) -> None:
    path = f"models.{model.id}.slots"
    if not model.slots.save:
        return
    if model.slots.timeout <= 0:
        report.error(f"model {model.id}: slots.timeout must be more than 0s", f"{path}.timeout")
    if "--slot-save-path" not in model.cmd:
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
        rename_params={old: new for old, new in sorted(filters.rename_params.items()) if "model" not in (old, new)},
        clamp_params=_without_model(filters.clamp_params),
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
