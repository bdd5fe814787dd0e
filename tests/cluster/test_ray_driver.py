"""The process between a front and Ray, with a stand-in for Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

from attrs import Factory, define
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cluster import ray_driver


@define(eq=False)
class FakeGroups:
    """Placement groups by name. `meanwhile` is called while a group is waited for; `removed_early` are those that were
    removed before that."""

    names: set[str] = Factory(set)
    meanwhile: Callable[[], None] = lambda: None
    making: bool = False
    removed_early: list[str] = Factory(list)

    def placement_group(self, bundles: object, *, name: str, **_: object) -> object:
        self.names.add(name)
        return SimpleNamespace(name=name, wait=self.wait)

    def get_placement_group(self, name: str) -> object:
        if name not in self.names:
            raise ValueError(name)
        return SimpleNamespace(name=name, wait=self.wait)

    def remove_placement_group(self, group: SimpleNamespace) -> None:
        self.names.discard(group.name)
        if self.making:
            self.removed_early.append(group.name)

    def wait(self, limit: float) -> bool:
        self.making = True
        self.meanwhile()
        self.making = False
        return True


class ReservationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.groups = FakeGroups()
        self.patch(ray_driver, "released", {})
        modules = mock.patch.dict(
            sys.modules,
            {"ray": SimpleNamespace(), "ray.util": SimpleNamespace(), "ray.util.placement_group": self.groups},
        )
        modules.start()
        self.addCleanup(modules.stop)

    def test_reservation_is_kept_until_it_is_released(self) -> None:
        self.assertEqual(ray_driver.reserve("a#1.1", "nas", {"ram_mib": 5}), "")
        self.assertEqual(self.groups.names, {"a#1.1"})
        ray_driver.release("a#1.1")
        self.assertEqual(self.groups.names, set())

    def test_reservation_that_is_released_before_it_is_made_does_not_stay(self) -> None:
        """They are asked for in two threads: a start was given up."""
        ray_driver.release("a#1.1")
        self.assertNotEqual(ray_driver.reserve("a#1.1", "nas", {"ram_mib": 5}), "")
        self.assertEqual(self.groups.names, set())

    def test_reservation_that_is_released_while_it_is_made_is_removed_after_that(self) -> None:
        """Otherwise a node of Ray keeps the memory of a group that does not exist any more."""
        self.groups.meanwhile = lambda: ray_driver.release("a#1.1")
        ray_driver.reserve("a#1.1", "nas", {"ram_mib": 5})
        self.assertEqual((self.groups.names, self.groups.removed_early), (set(), []))

    def test_names_of_ended_reservations_have_a_bound(self) -> None:
        for number in range(ray_driver.MAX_RELEASED + 5):
            ray_driver.release(f"a#1.{number}")
        self.assertEqual(len(ray_driver.released), ray_driver.MAX_RELEASED)


class AgentCommandTests(SynchronousTestCase):
    def words(self, labels: dict[str, str]) -> list[str]:
        """The agent's command on a node with these labels."""
        context = SimpleNamespace(get_node_labels=lambda: labels)
        ray = SimpleNamespace(get_runtime_context=lambda: context)
        modules = {"ray": ray, "ray.util": SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7")}
        with mock.patch.dict(sys.modules, modules):
            return ray_driver.agent_words("nas")

    def test_agent_listens_where_the_present_node_of_its_host_says(self) -> None:
        """A host whose node was killed, and that joined with another address or port, never came online again."""
        labels = {"llamaswap-address": "10.0.0.9", "llamaswap-port": "6500"}
        self.assertEqual(self.words(labels)[-1], "10.0.0.9:6500")
        self.assertEqual(self.words({})[-1], "10.0.0.7:6400")


class NodeTests(SynchronousTestCase):
    def test_node_that_is_alive_is_taken_and_all_addresses_of_its_name_are_listed(self) -> None:
        given = [
            {
                "Alive": alive,
                "Labels": {"llamaswap-host": "nas", "ray.io/node-id": "x", "gpu": "4090"},
                "NodeManagerAddress": address,
                "Resources": {"ram_mib": 8000.0, "memory": 1.0},
            }
            for alive, address in ((False, "10.0.0.5"), (True, "10.0.0.6"), (True, "10.0.0.7"), (False, "10.0.0.8"))
        ]
        with mock.patch.dict(sys.modules, {"ray": SimpleNamespace(nodes=lambda: given)}):
            [found] = ray_driver.nodes()
        self.assertEqual((found["address"], found["addresses"]), ("10.0.0.6", ["10.0.0.6", "10.0.0.7"]))
        self.assertEqual((found["sizes"], found["labels"]), ({"ram": 8000}, {"gpu": "4090"}))
