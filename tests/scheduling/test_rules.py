"""The scheduler's rules that follow from a configuration."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Model
from llamaswap.config.endpoints import Endpoint
from llamaswap.config.schema.model import SuspendSettings
from llamaswap.scheduling.rules import rules_of

SUSPEND = SuspendSettings(sleep=("POST /sleep",), wake=("POST /wake_up",))


def sleepers(**servers: tuple[str, int]) -> set[str]:
    """The models that can be suspended, out of models whose definitions allow it; the values are their endpoints."""
    models = {
        name: Model(name, cmd="serve", sleep=SUSPEND, endpoint=Endpoint("http", host, port, "", ""))
        for name, (host, port) in servers.items()
    }
    return {name for name, rules in rules_of(Config(models=models)).models.items() if rules.can_suspend}


class SleepTests(SynchronousTestCase):
    def test_models_that_share_a_port_are_stopped_because_a_suspended_one_would_keep_it(self) -> None:
        self.assertEqual(sleepers(a=("127.0.0.1", 9000), b=("localhost", 9000), c=("127.0.0.1", 9001)), {"c"})

    def test_models_on_other_machines_may_share_a_port(self) -> None:
        self.assertEqual(sleepers(a=("box", 9000), b=("box", 9000), c=("127.0.0.1", 9000)), {"a", "b", "c"})
