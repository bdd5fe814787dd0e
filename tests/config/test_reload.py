"""Reload: changed files, rejected configurations, and the log."""

from __future__ import annotations

from attrs import Factory, define
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.config import Config, Model
from llamaswap.config.diff import ConfigDiff
from llamaswap.config.loader import LoadedConfig
from llamaswap.config.reload import Reloader
from llamaswap.errors import ConfigError, Problem
from llamaswap.events import ConfigRejected, ConfigReloaded, EventBus


def config(**cmds: str) -> Config:
    return Config(models={name: Model(name, cmd) for name, cmd in cmds.items()})


@define(eq=False)
class Scene:
    clock: Clock = Factory(Clock)
    bus: EventBus = Factory(lambda: EventBus(on_error=print))
    disk: object = Factory(lambda: LoadedConfig(config(a="serve a")))
    current: Config = Factory(lambda: config(a="serve a"))
    touched: bool = False
    loads: int = 0
    applied: list = Factory(list)
    news: list = Factory(list)
    gate: Deferred | None = None

    def reloader(self) -> Reloader:
        self.bus.subscribe(ConfigReloaded, self.news.append)
        self.bus.subscribe(ConfigRejected, self.news.append)
        return Reloader(
            clock=self.clock,
            bus=self.bus,
            current=lambda: self.current,
            load=self.load,
            keep=lambda old, new: new,
            apply=self.apply,
            changed=self.changed,
        )

    def load(self):
        self.loads += 1
        if isinstance(self.disk, Exception):
            raise self.disk
        return self.disk

    def apply(self, new, plan):
        self.current = new
        self.applied.append(plan)
        return self.gate

    def changed(self):
        touched, self.touched = self.touched, False
        return touched


class ReloadTests(SynchronousTestCase):
    def test_configuration_loaded_on_another_thread_is_applied_when_it_arrives(self) -> None:
        scene = Scene()
        loaded: Deferred = Deferred()
        scene.disk = loaded
        done = scene.reloader().reload()
        self.assertNoResult(done)
        self.assertEqual(scene.applied, [])
        loaded.callback(LoadedConfig(config(a="serve b")))
        self.successResultOf(done)
        self.assertEqual(scene.current, config(a="serve b"))

    def test_changes_are_applied_and_published(self) -> None:
        scene = Scene()
        reloader = scene.reloader()
        odd = Problem("odd")
        scene.disk = LoadedConfig(config(a="serve other", b="serve b"), (odd,))
        self.successResultOf(reloader.reload())
        self.assertEqual(scene.news, [ConfigReloaded(added=("b",), restarted=("a",))])
        self.assertEqual(scene.current, scene.disk.config)
        self.assertTrue(reloader.status.ok)
        self.assertEqual(reloader.status.warnings, (odd,))

    def test_log_names_the_changed_models(self) -> None:
        scene = Scene()
        reloader = scene.reloader()
        said: list[str] = []
        observe = lambda event: said.append(event["changes"]) if "changes" in event else None
        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        for disk in (config(a="serve other", b="serve b", c="x"), config(c="x"), config(c="x")):
            scene.disk = LoadedConfig(disk)
            self.successResultOf(reloader.reload())
        self.assertEqual(said, ["added: b, c; restarting: a", "removed: a, b", "no model changed"])

    def test_unchanged_configuration_is_published_without_changes(self) -> None:
        scene = Scene()
        self.successResultOf(scene.reloader().reload())
        self.assertEqual(scene.news, [ConfigReloaded()])
        self.assertEqual(scene.applied, [ConfigDiff()])

    def test_broken_configuration_leaves_the_old_one_in_force(self) -> None:
        """core V103"""
        scene = Scene()
        reloader = scene.reloader()
        problem = Problem("no such key", "models.a", "c.yaml", 3)
        scene.disk = ConfigError([problem])
        self.successResultOf(reloader.reload())
        self.assertEqual(scene.applied, [])
        self.assertEqual(scene.news, [ConfigRejected(str(problem))])
        self.assertFalse(reloader.status.ok)
        self.assertEqual(reloader.status.problems, (problem,))
        scene.disk = LoadedConfig(config(a="better"))
        self.successResultOf(reloader.reload())
        self.assertTrue(reloader.status.ok)
        self.assertEqual(scene.news[-1], ConfigReloaded(restarted=("a",)))

    def test_unreadable_file_rejects_the_reload(self) -> None:
        scene = Scene()
        reloader = scene.reloader()
        scene.disk = PermissionError(13, "Permission denied", "c.yaml")
        self.successResultOf(reloader.reload())
        self.assertIn("cannot be read", reloader.status.message)

    def test_unexpected_error_is_logged_and_the_next_reload_works(self) -> None:
        scene = Scene()
        reloader = scene.reloader()
        scene.disk = ZeroDivisionError("odd")
        self.successResultOf(reloader.reload())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(scene.news, [ConfigRejected("ZeroDivisionError: odd")])
        scene.disk = LoadedConfig(config(a="serve a"))
        self.successResultOf(reloader.reload())
        self.assertTrue(reloader.status.ok)

    def test_triggers_during_a_reload_become_one_more(self) -> None:
        scene = Scene()
        reloader = scene.reloader()
        scene.gate = Deferred()
        first = reloader.reload()
        second, third = reloader.reload(), reloader.reload()
        self.assertEqual(scene.loads, 1)
        self.assertNoResult(first)
        gate, scene.gate = scene.gate, None
        gate.callback(None)
        for done in (first, second, third):
            self.successResultOf(done)
        self.assertEqual(scene.loads, 2)


class WatchTests(SynchronousTestCase):
    def watched(self) -> tuple[Scene, Reloader]:
        scene = Scene()
        reloader = scene.reloader()
        reloader.watch()
        self.addCleanup(reloader.stop)
        return scene, reloader

    def test_unchanged_files_are_not_loaded(self) -> None:
        scene, _ = self.watched()
        scene.clock.pump([2.0] * 5)
        self.assertEqual(scene.loads, 0)

    def test_changed_files_are_loaded_within_two_seconds(self) -> None:
        scene, _ = self.watched()
        scene.touched = True
        scene.clock.advance(2.0)
        scene.clock.advance(2.0)
        self.assertEqual(scene.loads, 1)

    def test_stopped_watch_leaves_no_timer(self) -> None:
        scene, reloader = self.watched()
        reloader.watch()
        reloader.stop()
        reloader.stop()
        self.assertEqual(scene.clock.getDelayedCalls(), [])
