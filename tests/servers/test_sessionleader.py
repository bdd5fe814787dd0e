"""The instruction a session leader gets by pipe."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers.sessionleader import follow, instruct


class InstructionTests(SynchronousTestCase):
    def test_what_goes_in_comes_out(self):
        argv = [b"server", b"", b"two words", b"new\nline", b"\xff"]
        length, _, payload = instruct(b"/bin/server", argv, [b"A=1", b"B=x=y"]).partition(b"\n")
        self.assertEqual(int(length), len(payload))
        self.assertEqual(follow(payload), (b"/bin/server", argv, {b"A": b"1", b"B": b"x=y"}))

    def test_of_keys_given_twice_the_later_counts(self):
        payload = instruct(b"/x", [b"x"], [b"MODE=0", b"MODE=1", b"MODE=2"]).partition(b"\n")[2]
        self.assertEqual(follow(payload)[2], {b"MODE": b"2"})
