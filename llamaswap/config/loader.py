"""From the text of files to a Config, in stages. Each stage reports all its problems before the next one begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from attrs import evolve, field, frozen

from llamaswap.config import api_keys, macros, merge, references
from llamaswap.config import models as model_sections
from llamaswap.config import routing as routing_sections
from llamaswap.config.command_findings import check_commands
from llamaswap.config.decode import Decoder
from llamaswap.config.diagnostics import Diagnostics
from llamaswap.config.field_types import keys_of
from llamaswap.config.macros import Expander, ExpansionBudget
from llamaswap.config.models import ModelDraft
from llamaswap.config.nodes import MappingNode, Node
from llamaswap.config.replicas import with_replicas
from llamaswap.config.schema import (
    LOG_LEVELS,
    LOG_TIME_FORMATS,
    MINIMUM_HEALTH_CHECK_TIMEOUT,
    MINIMUM_PERFORMANCE_EVERY,
    Config,
    SecuritySettings,
    StoreSettings,
)
from llamaswap.config.schema.hosts import check_hosts
from llamaswap.config.schema.model import Model
from llamaswap.config.yaml_tree import ConfigText, parse
from llamaswap.errors import ConfigError, Problem

# Why a file cannot be the activity store ("not writable"), None if it can.
StoreProblem = Callable[[str], str | None]


@frozen
class LoadedConfig:
    """A valid configuration, its warnings, and the document `root`, which has the location of each key."""

    config: Config
    warnings: tuple[Problem, ...] = ()
    root: MappingNode | None = field(default=None, eq=False, repr=False)


def load(
    sources: Sequence[ConfigText],
    environ: Mapping[str, str],
    *,
    store_problem: StoreProblem | None = None,
    thorough: bool = False,
) -> LoadedConfig:
    """Read, merge, expand, decode and check. Raises ConfigError with every problem of the failing stage.

    With `thorough` later stages are run after errors as well, so that ConfigError has the problems of all of them.
    `store_problem` checks the file of the activity store.
    """
    report = Diagnostics(collect_all=thorough)
    tables = _parsed(sources, environ, thorough)
    try:
        done = _load(tables, report, store_problem)
    except ConfigError as error:  # no later stage can run
        if not thorough:
            raise
        report.errors += error.problems
        report.warnings += error.warnings
    except Exception:
        # A later stage may fail because of an error that is already reported. Otherwise it is a fault in this program.
        if not report.errors:
            raise
    report.finish()
    return done


def _parsed(sources: Sequence[ConfigText], environ: Mapping[str, str], thorough: bool) -> list[MappingNode]:
    """The documents that are not empty. Raises ConfigError, if `thorough` with the syntax errors of all files."""
    tables: list[MappingNode] = []
    found: list[Problem] = []
    for source in sources:
        try:
            table = parse(source, environ)
        except ConfigError as error:
            if not thorough:
                raise
            found += error.problems
        else:
            tables += [] if table is None else [table]
    if found:
        raise ConfigError(found)
    return tables


def _load(tables: Sequence[MappingNode], report: Diagnostics, store_problem: StoreProblem | None) -> LoadedConfig:
    root = report.root = merge.merge(tables)
    budget = ExpansionBudget()
    global_macros = macros.declared(root.get("macros"), "macros", "", report)
    drafts = model_sections.drafts(root.get("models"), report)
    report.raise_if_errors()
    expander = Expander(global_macros, budget)
    others = {name: expander.node(child) for name, child in root.entries.items() if name not in ("macros", "models")}
    start_port = _start_port(others.get("startPort"), report)
    drafts = {name: draft.expanded(global_macros, budget, report) for name, draft in drafts.items()}
    report.raise_if_errors()
    ports = count(start_port)
    for name, draft in drafts.items():  # ascending in the order of the model IDs
        drafts[name] = draft.placed(next(ports), budget, report) if draft.wants_port else draft
    report.raise_if_errors()
    for name, child in others.items():
        if name in keys_of(Config):
            macros.check_leftovers(child, name, report, global_macros)
    for draft in drafts.values():
        draft.check_leftovers(report)
    report.raise_if_errors()
    # In the order of the file, because the first model with a tag is the one that is loaded for it.
    written = root.get("models")
    drafts = {name: drafts[name] for name in (written.entries if isinstance(written, MappingNode) else ())}
    values = Decoder(report).given(Config, evolve(root, entries=others), "")
    values["peers"] = references.peers(values.get("peers", {}), others.get("peers"), report)
    config = Config(**values, macros={name: macros.value_of(macro) for name, macro in global_macros.items()})
    config = _complete(_resolved(config, report, store_problem), root, drafts, report)
    report.raise_if_errors()
    config = with_replicas(config, ports, report)
    report.raise_if_errors()
    return LoadedConfig(config, report.reported_warnings(), root)


def _start_port(node: Node | None, report: Diagnostics) -> int:
    attribute, key = keys_of(Config)["startPort"]
    value = None if node is None else Decoder(report).value(attribute, key, node, "startPort")
    return value if isinstance(value, int) else Config().start_port


def _complete(config: Config, root: MappingNode, drafts: Mapping[str, ModelDraft], report: Diagnostics) -> Config:
    """The configuration with its models, and with everything that refers to them checked."""
    models = {name: model_sections.model(draft, config, report) for name, draft in drafts.items()}
    report.raise_if_errors()
    models = references.with_aliases(models, report)
    _warn_of_shared_ports(models, report)
    config = evolve(config, models=models)
    router = routing_sections.normalise(config, root, report)
    config = evolve(
        config,
        routing=evolve(config.routing, router=router),
        groups=router.settings.groups,
        matrix=router.settings.matrix,
    )
    scheduler = routing_sections.scheduler(config, report)
    report.raise_if_errors()
    references.check(config, report)
    api_keys.check_models(config, report)
    on_startup = config.hooks.on_startup
    check_commands(models.values(), config.hooks, report)
    return evolve(
        config,
        routing=evolve(config.routing, scheduler=scheduler),
        hooks=evolve(config.hooks, on_startup=evolve(on_startup, preload=references.preloaded(config, report))),
    )


def _resolved(config: Config, report: Diagnostics, store_problem: StoreProblem | None) -> Config:
    """Check the global values, and correct those that are read leniently."""
    defaults = Config()
    every = config.performance.every or MINIMUM_PERFORMANCE_EVERY
    if every < MINIMUM_PERFORMANCE_EVERY:
        report.error("performance.every must be at least 5s", "performance.every")
    api_keys.check(config, report)
    _check_hosts(config.allowed_hosts, report)
    _check_cors(config.security, report)
    check_hosts(config.hosts, report)
    if config.captures.path.strip() and config.capture_buffer == 0:
        report.warn("captures.path has no effect because captureBuffer is 0", "captures.path")
    for name, path in (("captures.path", config.captures.path), ("logFiles.folder", config.log_files.folder)):
        if "\0" in path:
            report.error(f"{name}: a path cannot contain a NUL character", name)
    activity = config.ui.activity
    in_memory = config.metrics_max_in_memory
    return evolve(
        config,
        health_check_timeout=max(config.health_check_timeout, MINIMUM_HEALTH_CHECK_TIMEOUT),
        performance=evolve(config.performance, every=every),
        unload_timeout=config.unload_timeout or defaults.unload_timeout,
        metrics_max_in_memory=in_memory if in_memory > 0 else defaults.metrics_max_in_memory,
        ui=evolve(config.ui, activity=evolve(activity, session_id=_headers(activity.session_id))),
        store=_store(config.store, report, store_problem),
        log_level=_known_word(config.log_level, "logLevel", LOG_LEVELS, "info", report),
        log_time_format=_known_word(config.log_time_format, "logTimeFormat", LOG_TIME_FORMATS, "", report),
        log_files=evolve(config.log_files, folder=config.log_files.folder.strip()),
        captures=evolve(config.captures, path=config.captures.path.strip()),
    )


def _headers(given: Sequence[str]) -> tuple[str, ...]:
    kept: dict[str, str] = {}
    for name in (entry.strip() for entry in given):
        if name:
            kept.setdefault(name.lower(), name)
    return tuple(kept.values())


def _store(
    store: StoreSettings | None, report: Diagnostics, store_problem: StoreProblem | None
) -> StoreSettings | None:
    if store is None:
        return None
    path = store.path.strip()
    problem = "must not be empty" if not path else store_problem(path) if store_problem else None
    if problem:
        report.error(f"store.path: {path + ': ' if path else ''}{problem}", "store.path")
    return StoreSettings(path)


def _known_word(given: str, name: str, known: Sequence[str], fallback: str, report: Diagnostics) -> str:
    word = given.strip().lower()
    if word and word not in known:
        report.warn(f"{name}: {word!r} is none of {', '.join(known)}; {fallback or 'none'} is used", name)
    return word if word in known else fallback


_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?\Z")


def _check_hosts(given: Sequence[str], report: Diagnostics) -> None:
    for index, name in enumerate(given):
        if name != "*" and not _HOST_NAME.match(name):
            path = f"allowedHosts[{index}]"
            report.error(f"{path}: {name!r} is not a host name", path, hint="write it without scheme, port and path")


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?\Z")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _is_origin(text: str) -> bool:
    """Whether a browser may send this as an Origin; it never sends the default port of the scheme."""
    parts = _ORIGIN.match(text)
    if parts is None:
        return False
    scheme, port = parts.groups()
    return port is None or (port != _DEFAULT_PORTS.get(scheme) and int(port) < 1 << 16)


def _check_cors(security: SecuritySettings, report: Diagnostics) -> None:
    for index, origin in enumerate(security.cors.allow_origins):
        if origin != "*" and not _is_origin(origin):
            path = f"security.cors.allowOrigins[{index}]"
            hint = "write it as https://name or https://name:port, in lower case, without a path or a default port"
            report.error(f"{path}: {origin!r} is not an origin", path, hint=hint)
    listed = {name.lower() for name in security.cors.allow_headers}
    missing = [
        name
        for name in ("Content-Type", "Authorization")
        if name.lower() not in listed and not (name == "Content-Type" and "*" in listed)
    ]
    if listed and missing:
        report.warn(
            f"security.cors.allowHeaders does not list {' and '.join(missing)}",
            "security.cors.allowHeaders",
            hint="JSON requests need Content-Type, requests with an API key Authorization",
        )


def _warn_of_shared_ports(models: Mapping[str, Model], report: Diagnostics) -> None:
    """Warn of a port that one model gets and the proxy of another names: one of the two cannot start."""
    handed = {model.port: model.id for model in models.values() if model.port is not None}
    for model in models.values():
        endpoint = model.endpoint
        if model.port is None and endpoint is not None and endpoint.on_this_machine:
            other = handed.get(endpoint.port)
            if other is not None:
                report.warn(
                    f"model {model.id}: port {endpoint.port} of its proxy is also the port of {other}",
                    f"models.{model.id}.proxy",
                    hint="set startPort to a free range",
                )
