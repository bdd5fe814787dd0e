"""Eviction for models with replicas: rules name the model, and its servers never replace one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from llamaswap.config.policies.eviction import Eviction


@frozen
class ReplicaEviction:
    """Applies a policy to models with replicas; `model_of` has the model of each replica."""

    policy: Eviction
    model_of: Mapping[str, str]

    def _models(self, target: str, running: Sequence[str]) -> tuple[str, list[str]]:
        model = self.model_of.get(target, target)
        return model, sorted({self.model_of.get(name, name) for name in running} - {model})

    def __call__(self, target: str, running: Sequence[str], /) -> tuple[str, ...]:
        evicted = self.policy(*self._models(target, running))
        return tuple(name for name in running if self.model_of.get(name, name) in evicted)

    def protects(self, model: str, target: str, /) -> bool:
        model, target = self.model_of.get(model, model), self.model_of.get(target, target)
        return model == target or self.policy.protects(model, target)

    def explain(self, target: str, running: Sequence[str], /) -> str:
        return self.policy.explain(*self._models(target, running))

    def conflict(self, models: Sequence[str], /) -> str:
        return self.policy.conflict(models)
