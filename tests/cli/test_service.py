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
from llamaswap.cli.service import missing_for_user, plan
from tests.cli.doubles import invoke

CONFIG = Path(__file__).parent.parent.parent / "config"


class UnitTests(SynchronousTestCase):
    def test_files_in_config_are_the_generated_ones(self):
        self.assertEqual((CONFIG / "llamaswap.service").read_text(), service_files.service())
        self.assertEqual((CONFIG / "llamaswap.socket").read_text(), service_files.socket())
        self.assertEqual((CONFIG / "llamaswap-before-sleep.service").read_text(), service_files.before_sleep())
        document = plistlib.loads((CONFIG / f"{service_files.LABEL}.plist").read_bytes())
        self.assertEqual(document["ProgramArguments"][0], service_files.PROGRAM)

    def test_words_of_the_command_are_quoted_for_systemd(self):
        text = service_files.service("'/opt/my apps/llamaswap'", "/etc/100%.yaml")
        self.assertIn('ExecStart="/opt/my apps/llamaswap" -config /etc/100%%.yaml', text)

    def test_socket_unit_has_the_address(self):
        for given, told in ((":8080", "8080"), ("127.0.0.1:1", "127.0.0.1:1"), ("unix:/run/x.sock", "/run/x.sock")):
            self.assertIn(f"ListenStream={told}\n", service_files.socket(given))

    def test_before_sleep_unit_unloads_this_server(self):
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

    def test_units_pass_systemd_analyze_verify(self):
        """It exits 0 also with findings, so its output is checked."""
        for user in (False, True):
            folder = self.units(user=user)
            scope = ["--user"] if user else ["--system"]
            files = [str(folder / name) for name in sorted(path.name for path in folder.iterdir())]
            done = self.analyze("verify", *scope, *files)
            if user and "runtime directory" in done.stderr.lower():
                continue  # there is no user manager here
            ours = [line for line in done.stderr.splitlines() if "llamaswap" in line]
            self.assertEqual(ours, [])

    def test_exposure_of_the_unit_is_low(self):
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

    def test_each_platform_has_its_paths(self):
        places = {
            ("linux", True): "/home/me/.config/systemd/user/llamaswap.service",
            ("linux", False): "/etc/systemd/system/llamaswap.service",
            ("darwin", True): "/home/me/Library/LaunchAgents/io.github.llamaswap.plist",
            ("darwin", False): "/Library/LaunchDaemons/io.github.llamaswap.plist",
        }
        for (platform, user), place in places.items():
            self.assertIn(Path(place), self.plan(platform, user).files)

    def test_user_service_has_the_path_and_no_dynamic_user(self):
        text = next(iter(self.plan("linux", True).files.values()))
        self.assertIn("Environment=PATH=/bin", text)
        self.assertNotIn("DynamicUser", text)

    def test_launchd_gets_the_words_of_the_command(self):
        document = plistlib.loads(next(iter(self.plan("darwin", True).files.values())).encode())
        self.assertEqual(
            document["ProgramArguments"], ["/bin/llamaswap", "-config", "/c.yaml", "-listen", "127.0.0.1:8080"]
        )


class CommandTests(SynchronousTestCase):
    def setUp(self):
        if os.uname().sysname != "Linux":
            raise SkipTest("the paths are those of systemd")
        self.home = Path(self.mktemp()).absolute()
        self.env = {"XDG_CONFIG_HOME": str(self.home), "HOME": str(self.home)}

    def test_install_replaces_files_only_when_forced(self):
        done = invoke(["service", "install", "--user"], env=self.env)
        self.assertEqual(done.exit_code, 0, done.output)
        self.assertIn("systemctl --user enable --now", done.stdout)
        unit = self.home / "systemd/user/llamaswap.service"
        self.assertIn(str(self.home / "llamaswap/config.yaml"), unit.read_text())
        self.assertEqual(invoke(["service", "install", "--user"], env=self.env).exit_code, 0)
        unit.write_text("mine")
        self.assertEqual(invoke(["service", "install", "--user"], env=self.env).exit_code, 1)
        self.assertEqual(invoke(["service", "install", "--user", "--force"], env=self.env).exit_code, 0)

    def test_missing_configuration_is_reported_at_install(self):
        done = invoke(["service", "install", "--user"], env=self.env)
        path = self.home / "llamaswap/config.yaml"
        self.assertIn(f"{path} does not exist yet", done.stderr)
        path.parent.mkdir()
        path.write_text("models: {}")
        self.assertNotIn("not there yet", invoke(["service", "install", "--user"], env=self.env).stderr)

    def test_install_names_what_a_users_service_needs(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        session = {"XDG_RUNTIME_DIR": "/run/user/1000"}
        (hint,) = missing_for_user(session, folder, "ann")
        self.assertIn("loginctl enable-linger ann", hint)
        self.assertIn("XDG_RUNTIME_DIR", missing_for_user({}, folder, "ann")[0])
        (folder / "ann").touch()
        self.assertEqual(missing_for_user(session, folder, "ann"), [])
        done = invoke(["service", "install", "--user", "--json"], env={**self.env, "XDG_RUNTIME_DIR": None})
        self.assertIn("XDG_RUNTIME_DIR", json.loads(done.stdout)["missing"][0])

    def test_show_prints_and_writes_no_file(self):
        done = invoke(["service", "show", "--system", "--json"], env=self.env)
        self.assertIn("/etc/systemd/system/llamaswap.socket", json.loads(done.stdout))
        self.assertFalse(self.home.exists())

    def test_uninstall_without_an_installation_exits_0(self):
        done = invoke(["service", "uninstall", "--user"], env=self.env)
        self.assertEqual((done.exit_code, "nothing" in done.stdout), (0, True))
