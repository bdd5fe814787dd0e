"""The `__repr__` that records share."""

import attrs
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.proxy.fastpath.shared_repr import record_repr, share_repr


class SharedReprTests(SynchronousTestCase):
    def setUp(self):
        self.define, self.frozen = attrs.define, attrs.frozen
        self.patch(attrs, "define", attrs.define)
        self.patch(attrs, "frozen", attrs.frozen)
        share_repr()

    def records(self, define):
        """A record of each kind, made by this decorator."""

        @define
        class Plain:
            one: int
            _two: str = "x"
            three: list = attrs.field(factory=list, init=False)
            unset: int = attrs.field(init=False)

        @define(kw_only=True, slots=False)
        class Special(Plain):
            key: str = attrs.field(default="secret", repr=False)
            shown: str = attrs.field(default="word", repr=str.upper)

        @define
        class Holder:
            held: object = None

        holder = Holder()
        holder.held = [holder]
        return [Plain(1), Special(one=1), holder]

    def test_records_look_as_attrs_shows_them(self):
        expected = [repr(record) for record in self.records(self.define)]
        records = self.records(attrs.define)
        self.assertEqual([repr(record) for record in records], expected)
        self.assertEqual({type(record).__repr__ for record in records}, {record_repr})

    def test_frozen_records_share_it_too(self):
        @attrs.frozen(order=True)
        class Point:
            x: int

        self.assertIs(Point.__repr__, record_repr)
        self.assertEqual(repr(Point(1)).rpartition(".")[2], "Point(x=1)")
        self.assertLess(Point(1), Point(2))

    def test_own_and_refused_ones_are_left_alone(self):
        @attrs.define
        class Own:
            def __repr__(self):
                return "own"

        @attrs.define(repr=False)
        class Refused:
            pass

        @attrs.define
        class Inherits(Own):
            pass

        self.assertEqual(repr(Own()), "own")
        self.assertIs(Refused.__repr__, object.__repr__)
        self.assertIs(Inherits.__repr__, record_repr)
