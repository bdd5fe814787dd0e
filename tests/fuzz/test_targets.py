"""The fuzzing targets on their seeds and on a few bytes of chance; `python -m tests.fuzz` does it thoroughly."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.targets import TARGETS

names = st.sampled_from(sorted(TARGETS))


@st.composite
def inputs(draw):
    """A target, and a seed of it with a few places changed, as a fuzzer without eyes would."""
    target = TARGETS[draw(names)]
    data = draw(st.sampled_from(target.seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        more = draw(st.sampled_from((*target.words, b"")) | st.binary(max_size=6))
        data = data[:at] + more + data[at + draw(st.integers(0, 8)) :]
    return target, data


class TargetTests(SynchronousTestCase):
    def test_every_target_takes_its_seeds(self):
        for target in TARGETS.values():
            for seed in target.seeds:
                target.run(seed)

    @settings(max_examples=200, deadline=None)
    @given(inputs())
    def test_every_target_takes_what_chance_makes_of_them(self, drawn):
        target, data = drawn
        target.run(data)
