"""The looks at what a machine has for models: one at a time, again and again, and only changes are told."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.app.host_files import LOOK_INTERVAL, Found, HostFiles
from llamaswap.discover.missing import NeededFiles

NEEDS = {"a": NeededFiles("serve")}


class HostFilesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.looks: list[Deferred[Found]] = []
        self.changes = 0
        self.files = HostFiles(self.clock, self.run_look, self.changed)

    def run_look(self, work: object) -> Deferred[Found]:
        self.looks.append(Deferred())
        return self.looks[-1]

    def changed(self) -> None:
        self.changes += 1

    def test_changes_are_told_and_the_machine_is_looked_at_again(self) -> None:
        self.files.need(NEEDS)
        self.looks[-1].callback(({"a": "serve"}, frozenset("b")))
        self.assertEqual((self.files.missing, self.files.cached, self.changes), ({"a": "serve"}, {"b"}, 1))
        self.clock.advance(LOOK_INTERVAL)
        self.looks[-1].callback(({"a": "serve"}, frozenset("b")))
        self.assertEqual((len(self.looks), self.changes), (2, 1))

    def test_disk_that_hangs_is_not_asked_twice_and_later_needs_are_looked_at_after_it(self) -> None:
        self.files.need(NEEDS)
        self.files.need({})
        self.clock.advance(100 * LOOK_INTERVAL)
        self.assertEqual(len(self.looks), 1)
        self.looks[0].callback(({"a": "serve"}, frozenset()))
        self.assertEqual((len(self.looks), self.changes), (2, 0))

    def test_look_that_fails_is_repeated_and_none_follows_the_end(self) -> None:
        self.files.need(NEEDS)
        self.looks[0].errback(OSError("the disk is broken"))
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.clock.advance(LOOK_INTERVAL)
        self.files.close()
        self.looks[1].callback(({}, frozenset()))
        self.assertEqual((len(self.looks), self.clock.getDelayedCalls()), (2, []))
