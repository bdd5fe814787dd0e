"""The instruction a session leader gets by pipe."""

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.servers.sessionleader import follow, instruct


class InstructionTests(SynchronousTestCase):
    def test_instruction_is_read_as_it_was_written(self):
        argv = [b"server", b"", b"two words", b"new\nline", b"\xff"]
        length, _, payload = instruct(b"/bin/server", argv, [b"A=1", b"B=x=y"]).partition(b"\n")
        self.assertEqual(int(length), len(payload))
        self.assertEqual(follow(payload), (b"/bin/server", argv, {b"A": b"1", b"B": b"x=y"}))

    def test_later_one_of_two_equal_environment_keys_counts(self):
        payload = instruct(b"/x", [b"x"], [b"MODE=0", b"MODE=1", b"MODE=2"]).partition(b"\n")[2]
        self.assertEqual(follow(payload)[2], {b"MODE": b"2"})
