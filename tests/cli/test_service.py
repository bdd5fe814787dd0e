"""The service definitions and the commands that write them."""

import json
import os
import plistlib
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from llamaswap.cli import service_files
from llamaswap.cli.service import plan
from tests.cli.doubles import invoke

CONFIG = Path(__file__).parent.parent.parent / "config"


class UnitTests(SynchronousTestCase):
    def test_the_files_in_the_tree_are_what_is_generated(self):
        self.assertEqual((CONFIG / "llamaswap.service").read_text(), service_files.service())
        self.assertEqual((CONFIG / "llamaswap.socket").read_text(), service_files.socket())
        self.assertEqual((CONFIG / "llamaswap-before-sleep.service").read_text(), service_files.before_sleep())
        document = plistlib.loads((CONFIG / f"{service_files.LABEL}.plist").read_bytes())
        self.assertEqual(document["ProgramArguments"][0], service_files.PROGRAM)

    def test_words_of_the_command_survive_systemds_reading(self):
        text = service_files.service("'/opt/my apps/llamaswap'", "/etc/100%.yaml")
        self.assertIn('ExecStart="/opt/my apps/llamaswap" -config /etc/100%%.yaml', text)

    def test_the_socket_listens_where_it_is_told(self):
        for given, told in ((":8080", "8080"), ("127.0.0.1:1", "127.0.0.1:1"), ("unix:/run/x.sock", "/run/x.sock")):
            self.assertIn(f"ListenStream={told}\n", service_files.socket(given))

    def test_before_sleep_the_models_of_this_very_server_are_unloaded(self):
        for listen, url in ((":1", "http://localhost:1"), ("h:1", "http://h:1"), ("/run/x.sock", "unix:/run/x.sock")):
            self.assertIn(f"unload --url {url}\n", service_files.before_sleep(listen=listen))

    def analyze(self, *words):
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd-analyze is not on this machine")
        return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)

    def units(self, **more):
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        (folder / "llamaswap.service").write_text(service_files.service("/bin/true", **more))
        (folder / "llamaswap.socket").write_text(service_files.socket())
        (folder / "llamaswap-before-sleep.service").write_text(service_files.before_sleep("/bin/true"))
        return folder

    def test_systemd_finds_nothing_to_complain_about(self):
        """It exits 0 whatever it finds: what counts is that it says nothing."""
        for user in (False, True):
            folder = self.units(user=user)
            scope = ["--user"] if user else ["--system"]
            files = [str(folder / name) for name in sorted(path.name for path in folder.iterdir())]
            done = self.analyze("verify", *scope, *files)
            if user and "runtime directory" in done.stderr.lower():
                continue  # no user manager can be had here
            ours = [line for line in done.stderr.splitlines() if "llamaswap" in line]
            self.assertEqual(ours, [])

    def test_its_exposure_is_low(self):
        done = self.analyze("security", "--offline=true", str(self.units() / "llamaswap.service"))
        score = re.search(r"exposure level for llamaswap\.service: ([\d.]+)", done.stdout)
        if score is None:
            raise SkipTest("this systemd cannot judge a file")
        self.assertLessEqual(float(score[1]), 2.0)


class PlanTests(SynchronousTestCase):
    def plan(self, platform, user):
        return plan(
            platform,
            Path("/home/me"),
            {"PATH": "/bin"},
            user=user,
            command="/bin/llamaswap",
            config="/c.yaml",
            listen="127.0.0.1:8080",
        )

    def test_each_platform_has_its_places(self):
        places = {
            ("linux", True): "/home/me/.config/systemd/user/llamaswap.service",
            ("linux", False): "/etc/systemd/system/llamaswap.service",
            ("darwin", True): "/home/me/Library/LaunchAgents/io.github.llamaswap.plist",
            ("darwin", False): "/Library/LaunchDaemons/io.github.llamaswap.plist",
        }
        for (platform, user), place in places.items():
            self.assertIn(Path(place), self.plan(platform, user).files)

    def test_a_users_service_has_his_path_and_no_user_of_its_own(self):
        text = next(iter(self.plan("linux", True).files.values()))
        self.assertIn("Environment=PATH=/bin", text)
        self.assertNotIn("DynamicUser", text)

    def test_launchd_gets_the_command_word_by_word(self):
        document = plistlib.loads(next(iter(self.plan("darwin", True).files.values())).encode())
        self.assertEqual(
            document["ProgramArguments"], ["/bin/llamaswap", "-config", "/c.yaml", "-listen", "127.0.0.1:8080"]
        )


class CommandTests(SynchronousTestCase):
    def setUp(self):
        if os.uname().sysname != "Linux":
            raise SkipTest("the places are systemd's")
        self.home = Path(self.mktemp()).absolute()
        self.env = {"XDG_CONFIG_HOME": str(self.home), "HOME": str(self.home)}

    def test_install_writes_once_and_replaces_only_when_forced(self):
        done = invoke(["service", "install", "--user"], env=self.env)
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertIn("systemctl --user enable --now", done.stdout)
        unit = self.home / "systemd/user/llamaswap.service"
        self.assertIn(str(self.home / "llamaswap/config.yaml"), unit.read_text())
        self.assertEqual(invoke(["service", "install", "--user"], env=self.env).exit_code, 0)
        unit.write_text("mine")
        self.assertEqual(invoke(["service", "install", "--user"], env=self.env).exit_code, 1)
        self.assertEqual(invoke(["service", "install", "--user", "--force"], env=self.env).exit_code, 0)

    def test_a_configuration_that_is_not_there_is_said_before_the_service_fails_for_it(self):
        done = invoke(["service", "install", "--user"], env=self.env)
        path = self.home / "llamaswap/config.yaml"
        self.assertIn(f"{path} does not exist yet", done.stderr)
        path.parent.mkdir()
        path.write_text("models: {}")
        self.assertNotIn("not there yet", invoke(["service", "install", "--user"], env=self.env).stderr)

    def test_show_prints_and_writes_nothing(self):
        done = invoke(["service", "show", "--system", "--json"], env=self.env)
        self.assertIn("/etc/systemd/system/llamaswap.socket", json.loads(done.stdout))
        self.assertFalse(self.home.exists())

    def test_uninstalling_what_is_not_there_is_no_error(self):
        done = invoke(["service", "uninstall", "--user"], env=self.env)
        self.assertEqual((done.exit_code, "nothing" in done.stdout), (0, True))
