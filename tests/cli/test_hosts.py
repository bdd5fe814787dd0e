"""`hosts`: the token, addresses, names and labels, before anything is started."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.hosts import refuse_public, without_token
from llamaswap.cluster.ray_node import is_public
from tests.cli.doubles import Server
from tests.cli.doubles import invoke as invoke_with
from tests.cli.test_command_group import invoke


class InitTests(SynchronousTestCase):
    def init(self, *words: str) -> tuple[int, str]:
        self.state = Path(self.mktemp())
        with mock.patch("llamaswap.cli.hosts.require_ray"):
            done = invoke(["hosts", "init", "--json", "--state", str(self.state), *words])
        return done.exit_code, done.stdout

    def test_token_is_made_once_and_only_this_user_can_read_it(self) -> None:
        status, text = self.init("--address", "10.0.0.5")
        self.assertEqual(status, 0, text)
        told = json.loads(text)
        token = (self.state / "token").read_text()
        self.assertEqual(told["join"], f"llamaswap hosts join 10.0.0.5:6399 --token {token} --name NAME")
        self.assertEqual(stat.S_IMODE((self.state / "token").stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.state.stat().st_mode), 0o700)
        with mock.patch("llamaswap.cli.hosts.require_ray"):
            invoke(["hosts", "init", "--state", str(self.state), "--address", "10.0.0.5"])
        self.assertEqual((self.state / "token").read_text(), token)

    def test_damaged_token_is_not_printed_as_a_line_to_join(self) -> None:
        state = Path(self.mktemp())
        state.mkdir()
        (state / "token").write_text("")
        with mock.patch("llamaswap.cli.hosts.require_ray"):
            done = invoke(["hosts", "init", "--state", str(state), "--address", "10.0.0.5"])
        self.assertEqual(done.exit_code, 1)
        self.assertIn("does not hold a token", done.output)
        self.assertNotIn("hosts join", done.output)

    def test_public_address_and_a_port_of_workers_are_refused(self) -> None:
        for words, reason in (
            (("--address", "8.8.8.8"), "not a private address"),
            (("--address", "10.0.0.5", "--port", "12000"), "for Ray's workers"),
        ):
            status, text = self.init(*words)
            self.assertEqual(status, 1)
            self.assertIn(reason, text)
            self.assertFalse(self.state.exists())
        self.assertEqual(self.init("--address", "8.8.8.8", "--public")[0], 0)

    def test_private_addresses(self) -> None:
        for address in ("10.0.0.5", "192.168.1.2", "127.0.0.1", "100.64.0.1", "fd00::1", "localhost"):
            self.assertFalse(is_public(address), address)
            refuse_public(address, allowed=False)
        for address in ("8.8.8.8", "2600::1", "example.com"):
            self.assertTrue(is_public(address), address)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class JoinTests(SynchronousTestCase):
    def join_words(self, state: str) -> list[str]:
        here = ["--address", "127.0.0.1", "--port", str(free_port())]
        return ["hosts", "join", "10.0.0.5", *here, "--state", state]

    def test_port_on_which_another_agent_listens_is_refused(self) -> None:
        """Two hosts on one machine would be one host twice."""
        with socket.create_server(("127.0.0.1", 0)) as taken, mock.patch("llamaswap.cli.hosts.PORT_LIMIT", 0.0):
            port = taken.getsockname()[1]
            words = ["--address", "127.0.0.1", "--port", str(port), "--state", self.mktemp(), "--token", "t" * 20]
            with mock.patch("llamaswap.cli.hosts.require_ray"):
                done = invoke(["hosts", "join", "127.0.0.1", *words])
        self.assertEqual(done.exit_code, 1)
        self.assertIn(f"cannot listen on 127.0.0.1:{port}", done.output)
        self.assertIn("--port", done.output)

    def test_join_says_what_is_missing_or_wrong(self) -> None:
        base = self.join_words(self.mktemp())
        for words, reason in (
            ([], "give the token"),
            (["--token", "short"], "not a token"),
            (["--name", "here"], "is the machine of llamaswap itself"),
            (["--name", "a b"], "the name of a host has letters"),
            (["--label", "gpu"], "KEY=VALUE"),
            (["--address", "fd00::1"], "IPv6"),
        ):
            with mock.patch("llamaswap.cli.hosts.require_ray"):
                done = invoke([*base, *words])
            self.assertEqual(done.exit_code, 1, words)
            self.assertIn(reason, done.output)

    def test_port_that_does_not_exist_is_refused_before_anything_is_done(self) -> None:
        for words in (("init",), ("join", "10.0.0.5")):
            for port in ("0", "99999"):
                done = invoke(["hosts", *words, "--port", port, "--state", self.mktemp()])
                self.assertEqual(done.exit_code, 2, done.output)
                self.assertIn("--port", done.output)
        self.assertIn(
            "10.0.0.5:99999: a port is 1 to 65535",
            invoke(["hosts", "join", "10.0.0.5:99999", "--state", self.mktemp()]).output,
        )

    def test_head_at_an_ipv6_address_is_refused_and_not_taken_for_one_with_a_port(self) -> None:
        for head in ("fd00::1", "[fd00::1]:6399", "[fd00::1]"):
            done = invoke(["hosts", "join", head, "--state", self.mktemp()])
            self.assertIn("IPv6", done.output)
        self.assertIn("IPv6", invoke(["hosts", "init", "--address", "fd00::1", "--state", self.mktemp()]).output)

    def test_token_is_read_from_a_file_and_one_that_is_refused_does_not_replace_it(self) -> None:
        state = Path(self.mktemp())
        file = Path(self.mktemp())
        file.write_text("t" * 20 + "\n")
        words = self.join_words(str(state))
        for given, status, kept in ((["--token-file", str(file)], 0, "t" * 20), (["--token", "w" * 20], 3, "t" * 20)):
            with (
                mock.patch("llamaswap.cli.hosts.require_ray"),
                mock.patch("llamaswap.cli.hosts.run_node"),
                mock.patch("subprocess.run", return_value=SimpleNamespace(returncode=status)) as run,
            ):
                done = invoke([*words, *given])
            self.assertEqual(done.exit_code, min(status, 1), done.output)
            self.assertNotIn("RAY_AUTH_TOKEN_PATH", run.call_args.kwargs["env"])
            self.assertEqual((state / "token").read_text(), kept)
        file.write_bytes(b"\xff" * 20)
        with mock.patch("llamaswap.cli.hosts.require_ray"):
            self.assertIn("not a token", invoke([*words, "--token-file", str(file)]).output)

    def test_token_is_not_among_the_words_that_other_users_can_read(self) -> None:
        for given in (["--token", "secret"], ["--token=secret"]):
            words = ["python", "-m", "llamaswap", "hosts", "join", *given, "10.0.0.5", "--name", "a"]
            kept = ["python", "-m", "llamaswap", "hosts", "join", "10.0.0.5", "--name", "a"]
            self.assertEqual(without_token(words), kept)

    def test_leave_without_a_join_says_so(self) -> None:
        done = invoke(["hosts", "leave", "--state", self.mktemp()])
        self.assertIn("no `llamaswap hosts join` runs here", done.output)


class ListTests(SynchronousTestCase):
    def test_hosts_are_listed_with_what_they_lack(self) -> None:
        host = {"host": "nas", "online": False, "problem": "its node died", "seen_seconds": 75.0, "models": []}
        document = {"hosts": [host], "problem": "", "missed": [], "findings": ["nas lacks a.gguf (needed by a)"]}
        done = invoke_with(["hosts", "list"], Server().on("GET /api/hosts", document))
        self.assertEqual(done.exit_code, 0)
        for text in ("offline: its node died", "nas lacks a.gguf (needed by a)"):
            self.assertIn(text, done.output)
