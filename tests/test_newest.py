"""What `tox -e newest` says about versions, and that the committed constraints cover what is installed by name."""

import configparser
import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.newest import differences, pinned, rewritten

ROOT = Path(__file__).parent.parent
TEXT = '# why\nPyYAML==6.0.3\nnumpy==2.4.6; python_version >= "3.11"\n'


class NewestTests(SynchronousTestCase):
    def test_changed_and_new_packages_are_named(self):
        self.assertEqual(
            differences(TEXT, {"pyyaml": "6.0.4", "numpy": "2.4.6", "rich": "15.0"}),
            ["pyyaml: 6.0.3 -> 6.0.4", "rich: not pinned -> 15.0"],
        )

    def test_rewritten_constraints_keep_comments_and_markers(self):
        text = rewritten(TEXT, {"pyyaml": "6.0.4", "numpy": "2.5.0", "rich": "15.0"})
        self.assertEqual(text, '# why\nPyYAML==6.0.4\nnumpy==2.5.0; python_version >= "3.11"\nrich==15.0\n')

    def test_every_dependency_of_the_suite_is_constrained(self):
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        lists = [setup["options"]["install_requires"]]
        lists += [setup["options.extras_require"][extra] for extra in ("dev", "live")]
        names = {re.split(r"[ <>=;\[]", line)[0] for line in "\n".join(lists).split("\n") if line}
        known = pinned((ROOT / "constraints.txt").read_text())
        self.assertEqual({name for name in names if re.sub(r"[-_.]+", "-", name).lower() not in known}, set())
