"""What a configuration that loads, or nearly loads, is warned of: names, ports, commands, and where they stand."""

import json

from llamaswap.config import ConfigText, load
from llamaswap.errors import ConfigError
from tests.config.loading import LoadCase

TWO = """
models:
  owl:
    cmd: serve --port ${PORT}
  hen:
    cmd: serve --port ${PORT}
"""


class FindingCase(LoadCase):
    def found(self, text):
        """The text of each error, or of each warning of a configuration that loads."""
        try:
            self.ok(text)
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        return [str(warning) for warning in self.loaded.warnings]

    def only(self, text, *words):
        """The one finding, which contains these words."""
        found = self.found(text)
        self.assertEqual(len(found), 1, found)
        for word in words:
            self.assertIn(word, found[0])

    def cmd(self, cmd, more=""):
        return f"models:\n  owl:\n    proxy: http://127.0.0.1:18342\n    cmd: {json.dumps(cmd)}\n{more}"


class NameTests(FindingCase):
    def test_unknown_preloaded_name_is_a_warning_with_its_line(self):
        text = TWO + "hooks:\n  on_startup:\n    preload:\n      - owl\n      - typo-model\n"
        self.only(text, "f0.yaml:11", "'typo-model'", "neither a model nor a group")
        self.assertEqual(self.loaded.config.hooks.on_startup.preload, ("owl",))

    def test_tag_or_group_as_a_target_is_called_that(self):
        tagged = TWO + "    tags: [small]\ngroups: {g: {members: [owl]}}\n"
        self.only(
            tagged + "selectors: {s: {strategy: pin, targets: [small]}}\n",
            "'small' is a tag or a group",
            "name a model",
        )
        self.only(tagged + "profiles: {day: {pins: {best: g}}}\n", "'g' is a tag or a group", "name a model")

    def test_request_headers_without_content_type_are_reported(self):
        cors = TWO + "security: {cors: {allowHeaders: %s}}\n"
        self.only(cors % "[X-Mine]", "f0.yaml:7", "Content-Type", "Authorization")
        for names in ("[content-type, authorization]", "[]", "['*', Authorization]"):
            self.ok(cors % names)
            self.assertEqual(self.loaded.warnings, ())

    def test_captures_in_files_without_captures_are_reported(self):
        self.only(TWO + "captureBuffer: 0\ncaptures: {path: /x}\n", "f0.yaml:8", "captures.path", "captureBuffer is 0")

    def test_preload_of_a_group_loads_its_members(self):
        text = TWO + "groups: {g: {swap: false, members: [owl, hen]}}\nhooks: {on_startup: {preload: [g]}}\n"
        self.assertEqual(self.ok(text).hooks.on_startup.preload, ("owl", "hen"))
        self.assertEqual(self.loaded.warnings, ())

    def test_model_is_preloaded_rather_than_a_group_of_its_name(self):
        text = TWO + "groups: {owl: {members: [hen]}}\nhooks: {on_startup: {preload: [owl]}}\n"
        self.assertEqual(self.ok(text).hooks.on_startup.preload, ("owl",))

    def test_unknown_group_member_is_reported_with_its_line(self):
        self.only(TWO + "groups:\n  g:\n    members:\n      - owl\n      - hne\n", "f0.yaml:11", "'hne'", "`hen`")

    def test_member_of_two_groups_is_reported_with_its_line(self):
        text = TWO + "groups:\n  g: {members: [owl]}\n  h:\n    members:\n      - hen\n      - owl\n"
        self.only(text, "f0.yaml:12", "is in groups 'g' and 'h'")

    def test_duplicate_alias_is_reported_with_its_line_and_the_other_model(self):
        text = (
            "models:\n  a:\n    cmd: s ${PORT}\n    aliases: [same]\n"
            "  b:\n    cmd: s ${PORT}\n    aliases:\n      - other\n      - same\n"
        )
        self.only(text, "f0.yaml:9", "duplicate alias 'same' of model b", "alias of a")

    def test_alias_that_is_the_id_of_a_model_has_no_effect(self):
        self.ok("models:\n  a:\n    cmd: x ${PORT}\n    aliases: [b]\n  b:\n    cmd: x ${PORT}\n")
        self.warned("f0.yaml:4", "the alias 'b' of model a has no effect")

    def test_unknown_matrix_names_are_reported_with_their_lines(self):
        matrix = TWO + "matrix:\n  vars:\n    o: owl\n    h: hne\n  sets:\n    s: o\n"
        self.only(matrix, "f0.yaml:10", "unknown model 'hne'", "`hen`")
        self.only(TWO + "matrix:\n  sets:\n    s: owl\n    t: owl & hne\n", "f0.yaml:10", "'hne'")
        self.only(TWO + "matrix:\n  evict_costs:\n    hne: 5\n  sets: {s: owl}\n", "f0.yaml:9", "'hne'")

    def test_unknown_selector_target_is_reported_with_its_line(self):
        text = TWO + "selectors:\n  s:\n    strategy: pin\n    targets:\n      - owl\n      - hne\n"
        self.only(text, "f0.yaml:12", "targets[1]", "'hne'", "`hen`")

    def test_unknown_pin_of_a_profile_is_reported_with_its_line(self):
        self.only(TWO + "profiles:\n  p:\n    pins:\n      big: owl\n      small: hne\n", "f0.yaml:11", "'hne'")

    def test_default_model_is_kept_and_an_unknown_one_is_reported_with_its_line(self):
        self.assertEqual(self.ok(TWO + "routing: {defaultModel: owl}").routing.default_model, "owl")
        self.only(TWO + "routing:\n  defaultModel: ovl\n", "f0.yaml:8", "'ovl'", "`owl`")

    def test_unknown_profile_of_the_start_is_reported_with_its_line(self):
        text = TWO + "profiles: {day: {pins: {best: owl}}}\nhooks:\n  on_startup:\n    profile: dya\n"
        self.only(text, "f0.yaml:10", "hooks.on_startup.profile: unknown profile 'dya'", "`day`")
        self.assertEqual(self.ok(text.replace("dya", "day")).hooks.on_startup.profile, "day")

    def test_origin_that_no_browser_sends_is_reported_with_its_line(self):
        text = TWO + "security:\n  cors:\n    allowOrigins:\n      - https://chat.example\n      - %s\n"
        wrong = ("chat.example", "https://chat.example/", "https://Chat.example", "https://*.example", "https://[::1")
        ports = (
            "https://chat.example:443",
            "http://chat.example:80",
            "https://chat.example:99999",
            "https://ch\u0131t.example",
        )
        for origin in wrong + ports:
            self.only(text % origin, "f0.yaml:11", f"{origin!r} is not an origin")
        origins = self.ok(text % "http://[::1]:8000").security.cors.allow_origins
        self.assertEqual(origins, ("https://chat.example", "http://[::1]:8000"))
        self.assertEqual(self.ok(TWO).security.cors.allow_origins, ("*",))

    def test_path_with_a_nul_character_is_reported_with_its_line(self):
        self.only(
            TWO + 'captures:\n  path: "a\\0b"\n', "f0.yaml:8", "captures.path: a path cannot contain a NUL character"
        )
        self.only(TWO + 'logFiles:\n  folder: "a\\0b"\n', "f0.yaml:8", "logFiles.folder: a path cannot")

    def test_tag_that_is_another_name_too_is_reported_with_its_line_and_what_wins(self):
        text = TWO + "    aliases: [biddy]\n    tags:\n      - free\n      - %s\n"
        more = (
            "selectors: {s: {strategy: pin, targets: [owl]}}\npeers: {p: {proxy: 'http://h:1', models: [far]}}\n"
            "groups: {g: {members: [owl]}}\nprofiles: {day: {pins: {best: owl}}}\n"
        )
        for tag, kind, winner in (
            ("owl", "a model ID", "that model"),
            ("biddy", "an alias", "model hen"),
            ("s", "a selector", "the selector"),
            ("far", "a model of a peer", "the peer"),
            ("p/far", "a model of a peer", "the peer"),
            ("g", "a group", "a member of the group"),
            ("best", "a pin of a profile", "while the profile is active"),
        ):
            self.only(text % tag + more, "f0.yaml:10", f"tag {tag!r} is also {kind}", winner)
        self.only(text % "''", "f0.yaml:10", "a tag must not be blank")

    def test_tag_of_several_models_is_reported_once_and_a_free_one_not_at_all(self):
        text = "models:\n  a: {cmd: 's ${PORT}', tags: [x, b]}\n  b: {cmd: 's ${PORT}', tags: [x, b, x]}\n"
        self.only(text, "f0.yaml:2", "tag 'b' is also a model ID")

    def test_tag_prefers_the_first_model_of_the_file(self):
        text = "models:\n  z: {cmd: 's ${PORT}', tags: [x]}\n  a: {cmd: 's ${PORT}', tags: [x]}\n"
        config = self.ok(text + "hooks: {on_startup: {preload: [x]}}\nrouting: {defaultModel: x}\n")
        self.assertEqual(self.loaded.warnings, ())
        self.assertEqual(config.members("x"), ("z", "a"))
        self.assertEqual(config.hooks.on_startup.preload, ("z", "a"))
        self.assertEqual((config.models["a"].port, config.models["z"].port), (5800, 5801))
        self.assertEqual(config.members("y"), ())

    def peers(self, alias, model="far", more=""):
        peer = "  {0}:\n    proxy: http://h:1\n    models: [far, {0}-own]\n    aliases:\n      {1}: {2}\n"
        return TWO + "peers:\n" + peer.format("p", alias, model) + more

    def test_alias_of_a_peer_is_a_name_of_its_model(self):
        config = self.ok(self.peers("near"))
        self.assertEqual(self.loaded.warnings, ())
        self.assertEqual((config.peer("near"), config.base("near")), (("p", "far"), "near"))
        self.ok(self.peers("near", more="routing: {defaultModel: near}\n"))
        auto = TWO + "peers: {p: {proxy: 'http://h:1', models: auto, aliases: {near: x}}}\n"
        self.assertEqual(self.ok(auto).peer("near"), ("p", "x"))

    def test_alias_of_a_peer_for_an_unknown_model_is_reported_with_its_line(self):
        self.only(self.peers("near", "fra"), "f0.yaml:12", "alias 'near' of peer p: unknown model 'fra'", "`far`")
        self.only(self.peers("''"), "f0.yaml:11", "must not be blank")

    def test_alias_of_a_peer_that_is_another_name_too_is_reported_with_its_line(self):
        self.only(self.peers("owl"), "f0.yaml:12", "alias 'owl' of peer p is already a model ID")
        taken = "models:\n  owl: {cmd: 's ${PORT}', aliases: [near]}\n"
        self.only(
            taken + self.peers("near").removeprefix(TWO), "alias 'near' of peer p is already an alias of model owl"
        )
        selector = "selectors: {s: {strategy: pin, targets: [owl]}}\n"
        self.only(self.peers("s", more=selector), "f0.yaml:12", "already a selector ID")
        self.only(self.peers("p/far"), "f0.yaml:12", "already a model of a peer")
        other = "  q:\n    proxy: http://h:2\n    models: [big]\n    aliases:\n      near: big\n"
        self.only(self.peers("near", more=other), "f0.yaml:17", "duplicate alias 'near' of peer q", "of peer p")
        self.only(self.peers("big", more=other), "f0.yaml:12", "is also a model of peer q", "goes to p")
        self.assertEqual(self.loaded.config.peer("big"), ("p", "far"))
        group = "groups: {g: {members: [owl]}}\n"
        self.only(self.peers("g", more=group), "f0.yaml:12", "is also a group", "goes to the peer")

    def test_unknown_model_in_the_priorities_is_reported_with_its_line(self):
        text = TWO + "routing:\n  scheduler:\n    settings:\n      fifo:\n        priority:\n          hne: 5\n"
        self.only(text, "f0.yaml:12", "'hne'")

    def test_id_with_dots_is_located_beside_a_shorter_one(self):
        text = "models:\n  a: {cmd: 's ${PORT}'}\n  a.b:\n    cmd: s ${PORT}\n    aliases: [x, x]\n"
        self.only(text, "f0.yaml:5", "duplicate alias 'x' of model a.b")

    def test_name_is_found_in_the_file_that_contains_it(self):
        sources = [ConfigText("a.yaml", TWO), ConfigText("b.yaml", "hooks:\n  on_startup: {preload: [hne]}\n")]
        [warning] = load(sources, {}).warnings
        self.assertEqual((warning.file, warning.line), ("b.yaml", 2))


class KeyTests(FindingCase):
    def test_top_level_key_inside_a_model_is_called_that(self):
        text = TWO + "    healthCheckTimeout: 90\n    startPort: 7000\n    groups: {}\n"
        found = self.found(text)
        self.assertEqual(len(found), 2, found)
        self.assertIn("f0.yaml:8", found[0])
        self.assertIn("`startPort` is a top-level key: move it out of the model", found[0])
        self.assertIn("`groups` is a top-level key", found[1])

    def test_key_of_a_model_at_the_top_level_is_called_that(self):
        self.only(TWO + "concurrencyLimit: 3\n", "f0.yaml:7", "belongs inside a model")

    def test_model_beside_the_models_is_called_that(self):
        self.only(TWO + "hawk:\n  cmd: serve --port ${PORT}\n", "f0.yaml:7", "move it below `models:`")

    def test_key_of_a_section_at_another_place_is_called_that(self):
        self.only(TWO + "cors: {}\n", "f0.yaml:7", "`cors` is a key of `security`")
        self.only(TWO + "maxConcurrent: 3\n", "`maxConcurrent` is a key of `routing.scheduler.settings.fifo`")
        self.only(TWO + "routing: {scheduler: {patience: 3s}}\n", "is a key of `routing.scheduler.settings.fifo`")
        self.only(TWO + "    canary: 3s\n", "`canary` is a key of `models.MODEL.stall`")
        peer = "peers: {p: {proxy: 'http://h:1', models: [m], connect: 3}}\n"
        self.only(TWO + peer, "`connect` is a key of `peers.NAME.timeouts`")

    def test_top_level_key_inside_a_section_is_called_that(self):
        self.only(
            TWO + "security: {allowedHosts: [x]}\n", "`allowedHosts` is a top-level key: move it out of `security`"
        )

    def test_key_of_two_sections_is_not_guessed(self):
        selector = "selectors: {s: {strategy: pin, targets: [owl], ttl: 3}}\n"
        self.assertNotIn("is a key of", self.found(TWO + selector)[0])
        [found] = self.found(TWO + "timeout: 3s\n")
        self.assertNotIn("is a key of", found)

    def test_list_for_a_mapping_is_reported_with_the_form_of_a_mapping(self):
        for text in (
            "security: [cors]\n",
            "peers: {p: {proxy: 'http://h:1', models: [m], aliases: [x]}}\n",
        ):
            self.only(TWO + text, "a list cannot be used, wanted a mapping", "write it as {name: value}")


class CommandTests(FindingCase):
    def test_missing_cmd_is_called_missing(self):
        self.only(
            "models:\n  a: {cmd: 's ${PORT}'}\n  c:\n    name: forgotten\n", "f0.yaml:3", "model c: cmd is missing"
        )

    def test_empty_cmd_is_called_missing(self):
        self.only("models:\n  c:\n    cmd: ''\n", "model c: cmd is missing")

    def test_missing_cmd_is_not_blamed_on_a_proxy_that_is_not_in_the_file(self):
        for entry, has in (("{name: x}", False), ("{name: x, proxy: 'http://h:${PORT}'}", True)):
            (found,) = self.found(f"models: {{c: {entry}}}\n")
            self.assertEqual("proxy uses ${PORT}" in found, has, found)
        self.only("models: {c: {cmd: serve}}\n", "models.c: model c: cmd has no ${PORT}, so the address")

    def test_document_that_is_not_a_mapping_is_an_error(self):
        for text, kind in (("word\n", "text"), ("3\n", "a number"), ("- models\n", "a list"), ("'# all'\n", "text")):
            self.only(text, "f0.yaml:1", f"holds {kind}, but a mapping is needed", "`models:`")

    def test_quote_that_is_not_closed_is_a_warning(self):
        for cmd in (
            "serve --port 18342 'a b",
            'serve --port 18342 --say "a b',
            "serve it's",
            'serve "a\\"',
            "sh -c 'x",
        ):
            self.only(self.cmd(cmd), "f0.yaml:4", "a quote is not closed")
        for cmd in ("serve --port 18342 'a b'", "serve \"it's\" ''", 'serve "a\\""', "# it's\nserve", r"serve it\'s"):
            self.assertEqual(self.found(self.cmd(cmd)), [], cmd)

    def test_port_of_the_command_that_differs_from_the_proxys_is_a_warning(self):
        for cmd in ("serve --port 18341", "serve --port=18341 -x", "serve -port 18341"):
            self.only(self.cmd(cmd), "f0.yaml:4", "owl", "listens on port 18341", "18342")
        for cmd in (
            "serve --port 18342",
            "serve",
            "serve --port auto",
            "serve --port ²",
            "serve --port 99999999999",
            "docker run -p 18342:8000 img --port 8000",
        ):
            self.assertEqual(self.found(self.cmd(cmd)), [], cmd)
        remote = "models:\n  owl: {cmd: 'serve --port 1', proxy: 'http://far.example:2'}\n"
        self.assertEqual(self.found(remote), [])

    def test_shell_syntax_in_a_command_is_a_warning(self):
        for cmd, word in (
            ("CUDA_VISIBLE_DEVICES=0 serve", "CUDA_VISIBLE_DEVICES=..."),
            ("cd /srv && serve", "&&"),
            ("serve | tee ./log", "|"),
            ("serve; true", "';'"),
            ("serve > log", ">"),
            ("serve 2>&1", "2>&1"),
            ("serve -m ~/x.gguf", "'~/'"),
            ("serve --model=~/x.gguf", "'~/'"),
            ("serve -m $HOME/x.gguf", "$HOME"),
            ("serve -m `pwd`", "'`'"),
            ("serve -m $(pwd)/x", "$("),
        ):
            self.only(self.cmd(cmd), "f0.yaml:4", "owl", word, "shell")

    def test_shell_syntax_in_stop_commands_and_hooks_is_a_warning(self):
        self.only(self.cmd("serve", "    cmdStop: stop ${PID} || true\n"), "f0.yaml:5", "models.owl.cmdStop", "'||'")
        hooks = "hooks:\n  before_load:\n    - notify\n    - notify > log\n    - http://h/?a=1&b=$X;\n"
        self.only(self.cmd("serve", hooks), "f0.yaml:8", "hooks.before_load[1]", "'>'")

    def test_secret_in_a_command_is_not_shown(self):
        for cmd in ("KEY=s3cret serve", "serve --key s3cret;", "serve --key=$X/s3cret", "serve -k ~/s3cret"):
            self.assertNotIn("s3cret", self.found(self.cmd(cmd))[0])

    def test_hint_for_a_variable_before_the_program_names_env(self):
        self.only(self.cmd("A=1 serve"), "`env:`")

    def test_text_for_a_shell_is_not_a_warning(self):
        for cmd in (
            'sh -c "cd /srv && A=1 serve -m $HOME/x | tee log"',
            "bash -lc 'serve > log'",
            "env A=1 serve",
            "serve --chat-template-kwargs '{\"a\": 1}' --regex 'foo$' --cost '$5'",
            "serve --text 'a | b; c' --glob a~b",
            "docker run --rm img sh -c 'serve > /log'",
            "serve '|' \"&&\"",
        ):
            self.assertEqual(self.found(self.cmd(cmd)), [], cmd)

    def test_named_container_without_cmd_stop_is_a_warning(self):
        for cmd in (
            "docker run --name c1 img",
            "sudo -n podman run --rm --name=c1 img",
            "/usr/bin/docker run -d --name c1 img",
        ):
            self.only(self.cmd(cmd), "f0.yaml:4", "owl", "container c1", "cmdStop")
        self.assertEqual(self.found(self.cmd("docker run --name c1 img", "    cmdStop: docker stop c1\n")), [])
        self.assertEqual(self.found(self.cmd("docker run img")), [])
