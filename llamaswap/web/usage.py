"""The API keys with their limits and use, and the use of models summed by key, model, client and time."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from attrs import define, frozen

from llamaswap.config import ApiKey, Config
from llamaswap.config.schema.keys import time_text
from llamaswap.observe.activity import ActivityLog
from llamaswap.observe.key_usage import KeyUsage
from llamaswap.observe.query import parse_filter
from llamaswap.observe.store import MAX_GROUPS, USAGE_GROUPS
from llamaswap.web.activity import harmless, stored
from llamaswap.web.admin_request import AdminRequest, JsonObject, Response, json_answer
from llamaswap.web.errors import HttpError
from llamaswap.web.key_access import access_of
from llamaswap.web.route import QueryParameter, Route, RouteTable


@frozen
class KeyDocument:
    """A key: never itself, only its name. Limits are 0 if there is none; `used` is of the budget's window."""

    name: str
    scopes: list[str]
    models: list[str]
    priority: int
    max_parallel: int
    rpm: int
    tpm: int
    budget_tokens: int
    window_s: float
    expires: str
    expired: bool
    running: int
    requests_last_minute: int
    tokens_last_minute: int
    used: int
    refused: int


@frozen
class KeyList:
    """All keys with a name; `unnamed` is the number of the others."""

    keys: list[KeyDocument]
    unnamed: int


@frozen
class UsageDocument:
    """Sums over the served requests; `complete` is false if there were more combinations than rows."""

    by: list[str]
    rows: list[JsonObject]
    complete: bool


route = RouteTable("keys", Route)
_BY = ", ".join(USAGE_GROUPS)


@define(eq=False)
class UsageEndpoints:
    """What the keys are, and what they have used."""

    config: Callable[[], Config]
    activity: ActivityLog
    usage: KeyUsage

    @route("GET", "/api/keys", answer=KeyList)
    def keys(self, call: AdminRequest) -> Response:
        """The API keys by name, with their limits and their use; never a key."""
        keys = self.config().api_keys
        named = [self._document(key, keys) for key in keys if key.name]
        return json_answer({"keys": named, "unnamed": len(keys) - len(named)})

    def _document(self, key: ApiKey, keys: tuple[ApiKey, ...]) -> JsonObject:
        meter, now = self.usage.meter(key.name), self.usage.wall()
        return {
            "name": key.name,
            "scopes": sorted(access_of(key, keys).scopes),
            "models": list(key.models),
            "priority": key.priority,
            "max_parallel": key.max_parallel,
            "rpm": key.rpm,
            "tpm": key.tpm,
            "budget_tokens": key.budget.tokens,
            "window_s": key.budget.window,
            "expires": time_text(key.expires),
            "expired": bool(key.expires) and key.expires <= now,
            "running": meter.running if meter else 0,
            "requests_last_minute": meter.requests.sum(now) if meter else 0,
            "tokens_last_minute": meter.tokens.sum(now) if meter else 0,
            "used": meter.spent.sum(now) if meter else 0,
            "refused": meter.refused if meter else 0,
        }

    @route(
        "GET",
        "/api/usage",
        answer=UsageDocument,
        query=(
            QueryParameter("by", f"What to sum by, separated by commas: {_BY}."),
            QueryParameter("since", "RFC 3339, inclusive."),
            QueryParameter("until", "RFC 3339, inclusive."),
            QueryParameter("key", "Only requests with the keys of these names.", repeatable=True),
            QueryParameter("model", "Only these models.", repeatable=True),
            QueryParameter("format", "json or csv."),
        ),
    )
    async def sums(self, call: AdminRequest) -> Response:
        """The use of models, summed by key, model, client, session, hour or day."""
        by = [name.strip() for name in (call.text("by") or "key,model").split(",") if name.strip()]
        wrong = next((name for name in by if name not in USAGE_GROUPS or by.count(name) > 1), None)
        if wrong is not None:
            raise HttpError(400, f"invalid 'by': {wrong!r} must be one of {_BY}, and stand there once")
        form = call.text("format") or "json"
        if form not in ("json", "csv"):
            raise HttpError(400, "format must be json or csv")
        since, until = call.time("since"), call.time("until")
        if since is not None and until is not None and since > until:
            raise HttpError(400, "since must be before until")
        given = {"start": call.query.get("since", []), "end": call.query.get("until", [])}
        wanted = parse_filter({**{name: call.query.get(name, []) for name in ("key", "model")}, **given})
        question = self.activity.ask(lambda table: table.usage(wanted, by, MAX_GROUPS + 1))
        rows = await stored(question, "the usage could not be read")
        complete, rows = len(rows) <= MAX_GROUPS, rows[:MAX_GROUPS]
        if form == "json":
            return json_answer({"by": by, "rows": rows, "complete": complete})
        out = io.StringIO()
        writer = csv.writer(out)
        names = (*by, "requests", "errors", "input_tokens", "output_tokens", "cache_tokens", "duration_ms")
        writer.writerow(names)
        writer.writerows([harmless(row[name]) for name in names] for row in rows)
        disposition = (b"Content-Disposition", b'attachment; filename="usage.csv"')
        return Response(200, out.getvalue().encode(), b"text/csv; charset=utf-8", (disposition,))
