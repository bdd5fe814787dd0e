"""The keys of hosts: other machines, and where models may run."""

from llamaswap.config.diff import diff
from llamaswap.config.schema.hosts import Hosts, Place, restart_needed
from tests.config.loading import LoadCase, owl

HOSTS = "hosts: {}\n"
LOCAL = 'proxy: "http://localhost:9000"'


class HostsTests(LoadCase):
    def test_without_the_key_there_are_no_hosts(self):
        for text in ("", "hosts: null\n"):
            self.assertIsNone(self.ok(text).hosts)

    def test_defaults_and_durations(self):
        self.assertEqual(self.ok(HOSTS).hosts, Hosts(grace=600.0, unseen=15.0, state=""))
        found = self.ok("hosts: {grace: 1h, unseen: 30s, state: /var/lib/x}\n").hosts
        self.assertEqual(found, Hosts(3600.0, 30.0, "/var/lib/x"))

    def test_settings_that_cannot_be_used(self):
        self.err("hosts: [nas]\n", "hosts", "a mapping")
        self.err("hosts: {unseen: 0s}\n", "hosts.unseen", "between 1s and 1h")
        self.err("hosts: {grace: 5s}\n", "hosts.grace", "hosts.unseen")
        self.err('hosts: {state: "a\\0b"}\n', "hosts.state", "NUL")

    def test_a_change_of_the_hosts_restarts_no_model(self):
        text = owl("cmd: x, px")
        found = diff(self.ok(text), self.ok(HOSTS + text))
        self.assertEqual((found.settings, found.restarted, found.retuned), ({"hosts"}, (), ()))

    def test_added_or_removed_hosts_need_a_restart(self):
        for old, new, word in (
            (None, Hosts(), "added"),
            (Hosts(), None, "removed"),
            (Hosts(), Hosts(state="/x"), "state"),
        ):
            self.assertIn(word, restart_needed(old, new))
            self.assertIn("restart llamaswap", restart_needed(old, new))
        self.assertEqual(restart_needed(Hosts(), Hosts(unseen=20.0)), "")


class PlaceTests(LoadCase):
    def place(self, text):
        return self.owl(f"cmd: x, {LOCAL}, place: {text}", HOSTS).place

    def test_a_host_a_list_or_what_the_host_must_have(self):
        for text, place in {
            "gpu-box": Place(("gpu-box",)),
            "[nas, here]": Place(("nas", "here")),
            "[]": Place(),
            "null": Place(),
            "{}": Place(),
            '{gpus: 2, vram: 40GiB, labels: {gpu: "4090"}}': Place((), 2, 40960, {"gpu": "4090"}),
            "{hosts: nas, labels: {gpu: 4090}}": Place(("nas",), labels={"gpu": "4090"}),
        }.items():
            self.assertEqual(self.place(text), place, text)
        self.assertEqual(self.owl(f"cmd: x, {LOCAL}", HOSTS).place, Place())

    def test_model_that_sleeps_or_saves_slots_and_may_run_on_another_host_is_warned_of(self):
        sleeping = f"cmd: x, {LOCAL}, sleep: {{sleep: POST /sleep, wake: POST /wake_up}}"
        saving = f"cmd: 'x --slot-save-path /s', {LOCAL}, slots: {{save: true}}"
        for body, place, warned in (
            (sleeping, "", True),
            (saving, "", True),
            (sleeping, ", place: [nas, here]", True),
            (sleeping, ", place: here", False),
            (f"cmd: x, {LOCAL}", "", False),
        ):
            self.ok(HOSTS + owl(body + place))
            said = [str(one) for one in self.loaded.warnings]
            self.assertEqual(any("on another host" in text for text in said), warned, (body, place, said))

    def test_place_without_hosts_says_what_to_write(self):
        self.err(owl(f"cmd: x, {LOCAL}, place: nas"), "models.owl.place", "write `hosts: {}` at the top level")

    def test_names_that_no_host_can_have(self):
        for name in ("a/b", "-a", "a b", '""', "a" * 64):
            self.err(HOSTS + owl(f"cmd: x, {LOCAL}, place: ['{name}']"), "models.owl.place", "not the name of a host")
        self.err(HOSTS + owl(f"cmd: x, {LOCAL}, place: [nas, nas]"), "models.owl.place", "names a host twice")

    def test_values_that_cannot_be_used(self):
        self.err(HOSTS + owl(f"cmd: x, {LOCAL}, place: {{gpus: -1}}"), "models.owl.place.gpus", "at least 0")
        self.err(HOSTS + owl(f"cmd: x, {LOCAL}, place: {{vram: lots}}"), "models.owl.place.vram", "9GiB")
        self.err(HOSTS + owl(f"cmd: x, {LOCAL}, place: {{labels: [a]}}"), "models.owl.place.labels", "a mapping")

    def test_a_server_at_an_address_of_its_own_cannot_be_placed(self):
        self.err(HOSTS + owl('cmd: x, proxy: "http://h:1", place: nas'), "models.owl.place", "`proxy`")

    def test_another_place_restarts_the_model(self):
        text = HOSTS + owl(f"cmd: x, {LOCAL}, place: %s")
        self.assertEqual(diff(self.ok(text % "nas"), self.ok(text % "[nas]")).restarted, ())
        self.assertEqual(diff(self.ok(text % "nas"), self.ok(text % "here")).restarted, ("owl",))
