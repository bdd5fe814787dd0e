"""Steps on a running server: a request to it, such as `POST /sleep?level=1`, or a command."""

from __future__ import annotations

import re

from attrs import frozen

from llamaswap.config.command_line import render_stop

_REQUEST = re.compile(r"(GET|POST|PUT|PATCH|DELETE)[ \t]+(\S*)(?:\s+(.*))?", re.DOTALL)


@frozen
class StepRequest:
    """A request to the server. `path` may have a query; a `body` is sent as JSON."""

    method: str
    path: str
    body: str = ""


def request_of(step: str) -> StepRequest | None:
    """The request of a step; None for a command."""
    found = _REQUEST.fullmatch(step.strip())
    if found is None:
        return None
    return StepRequest(found[1], found[2], (found[3] or "").strip())


def problem_of(step: str) -> str:
    """Why a step can never succeed; "" if it may."""
    request = request_of(step)
    if request is not None:
        return "" if request.path.startswith("/") else f"the path {request.path!r} of a request begins with a /"
    try:
        render_stop(step, 1)
    except ValueError as error:
        return str(error)
    return ""
