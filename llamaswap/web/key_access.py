"""What a request may do by the key that it presented."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import translate

from attrs import field, frozen

from llamaswap.config import ApiKey, Config
from llamaswap.config.models import ready
from llamaswap.config.schema.keys import SCOPES
from llamaswap.config.schema.model import Filters
from llamaswap.errors import RequestError
from llamaswap.web.errors import HttpError

INFER_ONLY = frozenset(("infer",))
SHOWN_NAME = 100  # characters of a model's name, which a client chooses, in an error
ALL_SCOPES = frozenset(SCOPES)


@frozen(eq=False)
class KeyAccess:
    """The name, scopes and models of one key; `key` has its limits. `models` None: it may use every model. `filters`
    change its requests."""

    name: str = ""
    scopes: frozenset[str] = ALL_SCOPES
    models: re.Pattern[str] | None = None
    key: ApiKey = field(factory=ApiKey, repr=False)
    digest: bytes = field(default=b"", repr=False)
    filters: Filters | None = field(default=None, repr=False)

    @property
    def limited(self) -> bool:
        """Whether the key has a limit on requests or tokens."""
        return self.key.limited

    @property
    def sees_all_jobs(self) -> bool:
        """Whether the jobs of all keys are shown to it: to one with the scope admin, and to one without a name."""
        return not self.name or "admin" in self.key.scopes

    def may_use(self, *names: str) -> bool:
        """Whether the key may use what has one of these names."""
        return self.models is None or any(map(self.models.match, names))

    def may_know(self, name: str, config: Config) -> bool:
        """Whether the key may learn the name of this model, because it may use the model by one of its names."""
        model = config.models.get(name) if self.models is not None else None
        if model is None:
            return self.may_use(name)
        return self.may_use(name, model.replica_of or name, *model.aliases, *model.filters.ids)

    def shown_error(self, error: BaseException, config: Config) -> BaseException:
        """An error without the names of the models that the key may not use."""
        if self.models is None or not isinstance(error, RequestError):
            return error
        return error.naming_only(lambda name: self.may_know(name, config))

    def shown_text(self, text: str, config: Config) -> str:
        """A text of ours, of any kind, without the names of the models that the key may not use."""
        if self.models is None:
            return text
        # A shown name may begin with a hidden one.
        shown = {name: True for name in config.selectors if self.may_use(name)}
        for model in config.models.values():
            known = self.may_know(model.id, config)
            shown |= dict.fromkeys((model.id, *model.aliases, *model.filters.ids), known)
        for peer in config.peers.values():
            shown |= {f"{peer.id}/{name}": self.may_use(f"{peer.id}/{name}", name) for name in peer.models}
        names = "|".join(map(re.escape, sorted(shown, key=len, reverse=True)))
        if not names:
            return text
        found = re.compile(rf"(?<![\w/-])(?:{names})(?![\w/-])")
        return found.sub(lambda match: match[0] if shown[match[0]] else "another model", text)

    def _refusal(self, why: str) -> HttpError:
        return HttpError(403, f"the API key {self.name} {why}", "scope")

    def require(self, scope: str) -> None:
        """Raise HttpError(403) if the key lacks this scope."""
        if scope not in self.scopes:
            raise self._refusal(f"has no scope {scope}; an administrator can add it in apiKeys")

    def require_model(self, *names: str) -> None:
        """Raise HttpError(403) if the key may not use what has these names, whether it exists or not."""
        if not self.may_use(*names):
            allowed = ", ".join(self.key.models)
            raise HttpError(
                403,
                f"the API key {self.name} may not use {names[0][:SHOWN_NAME]}; it may use: {allowed}",
                "model_not_allowed",
            )

    def require_counted(self, counted: bool) -> None:
        """Raise HttpError(403) if the key has limits, and a request is not counted against them."""
        if self.limited and not counted:
            raise self._refusal(
                "has limits, and what is sent here is not counted; it may only use the routes that name a model"
            )

    def require_unbounded(self, what: str) -> None:
        """Raise HttpError(403) if the key has limits or rules: they do not apply to what is in `what`."""
        if self.limited or self.key.ruled:
            raise self._refusal(f"has limits or rules, which do not apply to what is in {what}")

    def require_no_token_limit(self, what: str) -> None:
        """Raise HttpError(403) if the key has a limit on tokens: those of `what` are not counted."""
        if self.key.tpm or self.key.budget.tokens:
            raise self._refusal(f"has a limit on tokens, and those of {what} are not counted")

    def require_bounded(self, bounded: bool) -> None:
        """Raise HttpError(403) if the key has `maxTokens`, and how a request here asks for tokens is not known."""
        if self.key.max_tokens and not bounded:
            why = "has maxTokens, and it is not known what bounds the tokens on this path"
            raise self._refusal(f"{why}; use one such as /v1/chat/completions")

    def require_model_path(self, of_model: bool) -> None:
        """Raise HttpError(403) if a request to a peer is for a path that is not a model's, and the key has no scope
        admin: the peer gets its own key, which may allow everything there."""
        if not of_model and "admin" not in self.scopes:
            raise self._refusal("has no scope admin, so of a peer it may only use the model routes")

    def require_readable(self, readable: bool) -> None:
        """Raise HttpError(403) if it cannot be told which model a request names, and the key may not use every one."""
        if not readable and self.models is not None:
            raise self._refusal("may use some models only, so it must name one in JSON or a form")

    def require_job_paths(self, about_jobs: bool) -> None:
        """Raise HttpError(403) if the key may see only its own jobs, and a request here is about those of a server."""
        if about_jobs and not self.sees_all_jobs:
            raise self._refusal("sees only its own jobs; use the path without /upstream/MODEL")

    def require_ruled(self, ruled: bool) -> None:
        """Raise HttpError(403) if the key has rules for its requests, and they cannot be applied to this one."""
        if not ruled and (self.filters is not None or self.key.max_tokens):
            raise self._refusal("has rules, so its requests must name a model in a JSON body")


OPEN = KeyAccess()


def access_of(key: ApiKey, all_keys: Collection[ApiKey]) -> KeyAccess:
    """What a key may do. A key without a name may do everything. One with a name and without `scopes` may as well,
    unless another key has some."""
    scopes = frozenset(key.scopes)
    if not scopes:
        scopes = INFER_ONLY if key.name and any(other.scopes for other in all_keys) else ALL_SCOPES
    if "admin" in scopes:
        scopes = ALL_SCOPES
    models = re.compile("|".join(map(translate, key.models))) if key.models else None
    filters = None if key.filters == Filters() else ready(key.filters)
    return KeyAccess(key.name, scopes, models, key, key.digest, filters)
