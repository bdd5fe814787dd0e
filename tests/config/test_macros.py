"""Macros, ports and environment placeholders."""

from llamaswap.config import command_line
from tests.config.loading import PX, LoadCase, W, owl


class Ports(LoadCase):
    def test_ports_rise_with_model_ids(self):
        """config T021"""
        config = self.ok(
            'startPort: 7000\nmodels: {zed: {cmd: "z ${PORT}"}, Ant: {cmd: "a ${PORT}"}, '
            f'fix: {{cmd: f, {PX}}}, bat10: {{cmd: "b ${{PORT}}"}}, bat2: {{cmd: "b ${{PORT}}"}}}}'
        )
        want = {"Ant": 7000, "bat10": 7001, "bat2": 7002, "fix": None, "zed": 7003}
        self.assertEqual({name: model.port for name, model in config.models.items()}, want)

    def test_null_proxy_is_the_default(self):
        """config T023"""
        self.assertEqual(self.owl('cmd: "srv ${PORT}", proxy: ~').proxy, "http://localhost:5800")

    def test_port_only_in_the_proxy_is_refused(self):
        """config T022, T024"""
        self.err(owl("cmd: srv"), "owl", "proxy", "PORT", "cmd")
        self.err("models:\n  owl:\n    cmd: |\n      srv -p 91\n      # uses ${PORT}\n", "owl", "proxy", "PORT")

    def test_ports_inside_macros_count(self):
        """config T025"""
        model = self.owl('cmd: "srv ${net}"', 'macros: {net: "--host 0 --port ${PORT}"}\n')
        self.assertEqual(model.cmd, "srv --host 0 --port 5800")

    def test_port_needs_a_cmd_that_uses_it(self):
        """config T027"""
        self.err(owl('cmd: s, px, metadata: {n: "${PORT}"}'), "owl", "metadata", "PORT")
        self.err(owl('cmd: s, px, cmdStop: "kill ${PORT}"'), "owl.cmdStop", "PORT")

    def test_only_the_exact_grammar_is_a_placeholder(self):
        """config T028"""
        model = self.owl('cmd: "srv $PORT {PORT} ${PORT} $${PORT} ${} ${a b} ${a.b}"')
        self.assertEqual(model.cmd, "srv $PORT {PORT} 5800 $5800 ${} ${a b} ${a.b}")
        self.err(owl('cmd: "srv ${port} ${PORT}"'), "port", "owl.cmd")

    def test_another_port_replaces_the_first_everywhere(self):
        model = self.owl('cmd: "s ${PORT}", env: ["P=${PORT}"], metadata: {p: "${PORT}"}').with_port(99)
        self.assertEqual((model.cmd, model.env, model.metadata, model.port), ("s 99", ("P=99",), {"p": 99}, 99))
        self.assertEqual((model.proxy, model.endpoint.port), ("http://localhost:99", 99))


class Macros(LoadCase):
    def test_model_id_is_known_inside_a_model(self):
        """config T029"""
        config = self.ok('models: {"lab/owl:Q4": {cmd: "srv ${PORT} -hf ${MODEL_ID}"}}')
        self.assertEqual(config.models["lab/owl:Q4"].cmd, "srv 5800 -hf lab/owl:Q4")
        config = self.ok('macros: {dk: "docker stop ${MODEL_ID}"}\n' + owl('cmd: s, px, cmdStop: "${dk}"'))
        self.assertEqual(config.models["owl"].cmd_stop, "docker stop owl")
        self.assertEqual(config.macros["dk"], "docker stop ${MODEL_ID}")

    def test_pid_is_only_left_in_cmd_stop(self):
        """config T031"""
        self.assertEqual(self.owl('cmd: s, px, cmdStop: "kill -9 ${PID}"').cmd_stop, "kill -9 ${PID}")
        model = self.owl('cmd: s, px, cmdStop: "${st}"', 'macros: {st: "kill ${PID}"}\n')
        self.assertEqual(model.cmd_stop, "kill ${PID}")
        self.err(owl('cmd: "s ${PID}", px'), "PID", "owl.cmd")
        self.err(owl('cmd: s, px, metadata: {cmdStop: "${PID}"}'), "PID")

    def test_reserved_macro_names_are_refused(self):
        """config T032"""
        for name in ("PORT", "MODEL_ID", "PID"):
            self.err(f"macros: {{{name}: 1}}", name, "reserved")
        self.err(owl("cmd: s, px, macros: {PORT: 1}"), "owl", "PORT", "reserved")

    def test_macro_names_are_bounded(self):
        """config T033"""
        self.ok(f"macros: {{{'k' * 63}: 1}}")
        self.err(f"macros: {{{'k' * 64}: 1}}", "maximum length")
        for bad in ("a.b", '"a b"', '""', '"é"', "<<"):
            self.err(f"macros: {{{bad}: 1}}", "invalid characters")
        for bad in ("[1]", "{a: 1}", "~", "2024-01-01"):
            self.err(f"macros: {{m: {bad}}}", "'m'", "must be scalar")
        self.err("macros: [1]", "macros")

    def test_macro_cannot_use_itself(self):
        """config T035"""
        self.err('macros: {loop: "a ${loop} b"}', "loop", "self-reference")

    def test_macros_in_a_circle_are_left_over(self):
        """config T036"""
        circle = 'macros: {A: "${B}", B: "${A}"}\n'
        self.ok(circle)
        self.err(circle + owl('cmd: "x ${A}", px'), "unknown macro", "B")
        self.err(circle + owl('cmd: "x ${B}", px'), "unknown macro", "B")

    def test_only_earlier_macros_can_be_used(self):
        """config T037"""
        before = 'macros: {one: "v-${two}", two: w}\n'
        self.err(before + owl('cmd: "x ${one}", px'), "two")
        self.assertEqual(self.owl('cmd: "x ${two}", px', before).cmd, "x w")

    def test_whole_placeholder_keeps_the_type(self):
        """config T039"""
        model = self.owl(
            'cmd: x, px, metadata: {a: "${m}", b: "${k}", c: " ${n}", d: "${n}${n}"}',
            'macros: {n: 42, m: "${n}", k: "v${m}"}\n',
        )
        self.assertEqual(model.metadata, {"a": 42, "b": "v42", "c": " 42", "d": "4242"})

    def test_numbers_are_inserted_as_text(self):
        """config T040"""
        model = self.owl(
            'cmd: "x ${t} ${u} ${w} ${z} ${h} ${o} ${q} ${s} ${b} ${y}", px',
            'macros: {t: 0.70, u: 2.0, w: 1000000.0, z: 0.00001, h: 0x10, o: 010, q: "010", s: 1_000, '
            "b: true, y: yes}\n",
        )
        self.assertEqual(model.cmd, "x 0.7 2 1e+06 1e-05 16 8 010 1000 true yes")

    def test_macro_of_a_model_replaces_the_global_one(self):
        """config T041"""
        model = self.owl('cmd: "x ${msg}", px, macros: {tag: local}', 'macros: {tag: g, msg: "is-${tag}"}\n')
        self.assertEqual(model.cmd, "x is-local")

    def test_macros_do_not_leak_to_other_models(self):
        """config T043"""
        self.err(
            f'models: {{ant: {{cmd: a, {PX}, macros: {{loc: 1}}}}, bee: {{cmd: "b ${{loc}}", {PX}}}}}', "loc", "bee.cmd"
        )

    def test_keys_are_not_expanded(self):
        """config T044"""
        model = self.owl('cmd: x, px, metadata: {"${K}": 1}', "macros: {K: real}\n")
        self.assertEqual(model.metadata, {"${K}": 1})

    def test_typed_fields_take_typed_macros(self):
        """config T045"""
        before = "macros: {ttlv: 45, flag: true, hdr: X-Trace}\n"
        config = self.ok(
            before
            + 'globalTTL: "${ttlv}"\nsendLoadingState: "${flag}"\nui: {activity: {session_id: ["${hdr}"]}}\n'
            + owl('cmd: x, px, timeouts: {connect: "${ttlv}"}')
        )
        self.assertEqual((config.global_ttl, config.send_loading_state), (45, True))
        self.assertEqual(config.ui.activity.session_id, ("X-Trace",))
        self.assertEqual(config.models["owl"].timeouts.connect, 45)
        self.err('macros: {t: "45"}\nglobalTTL: "${t}"', "globalTTL")

    def test_start_port_may_be_a_macro(self):
        """config T047"""
        self.assertEqual(self.ok('macros: {first: 6200}\nstartPort: "${first}"\n' + W).models["owl"].port, 6200)

    def test_capabilities_take_macros(self):
        """config T048"""
        body = 'cmd: x, px, capabilities: {context: "${ctx}", tools: "${t}", in: [text, "${im}"]}'
        given = self.owl(body, "macros: {ctx: 98304, t: true, im: image}\n").capabilities
        self.assertEqual((given.context, given.tools, given.inputs), (98304, True, ("text", "image")))
        self.err("macros: {t: true, im: image}\n" + owl(body), "owl", "capabilities", "ctx")

    def test_models_from_one_anchor_expand_apart(self):
        """config T049"""
        config = self.ok(
            'lib: &base {cmd: "x ${v}", proxy: "http://h:9", env: ["V=${v}"], metadata: {k: "${v}"}}\n'
            "models:\n  ant: {<<: *base, macros: {v: one}}\n  bee: {<<: *base, macros: {v: two}}\n"
        )
        for name, word in (("ant", "one"), ("bee", "two")):
            model = config.models[name]
            self.assertEqual((model.cmd, model.env, model.metadata), (f"x {word}", (f"V={word}",), {"k": word}))

    def test_unquoted_placeholder_in_a_list_is_invalid_yaml(self):
        """config T051"""
        self.err(owl("cmd: x, px, aliases: [${A}]"), "YAML")

    def test_peers_take_macros(self):
        """config T052"""
        text = 'peers: {{hub: {{proxy: "http://p", models: [m], {}}}}}\n'
        before = "macros: {key: sk-1, cap: 64}\n"
        body = 'apiKey: "${key}", filters: {stripParams: "${key}", setParams: {max: "${cap}"}}'
        peer = self.ok(before + text.format(body)).peers["hub"]
        self.assertEqual((peer.api_key.value, peer.filters.strip_params_text), ("sk-1", "sk-1"))
        self.assertEqual(peer.filters.set_params, {"max": 64})
        self.assertNotIn("sk-1", repr(peer.api_key))
        self.err(text.format('filters: {setParams: {v: "${zz}"}}'), "peers.hub.filters.setParams", "zz")
        self.err(text.format('apiKey: "${zz}"'), "peers.hub.apiKey", "zz")

    def test_comments_inside_a_macro_are_removed_from_the_command(self):
        """config T053"""
        model = self.owl('cmd: "${c}", px', 'macros: {c: "srv # keep\\n# drop\\n--x 1"}\n')
        self.assertEqual(command_line.split(model.cmd), ["srv", "#", "keep", "--x", "1"])

    def test_leftover_placeholder_is_reported_with_model_and_field(self):
        """config T055"""
        for name in ("cmd", "cmdStop", "proxy", "checkEndpoint"):
            body = "" if name == "proxy" else ", px"
            self.err(owl(f'{name}: "x${{zz}}"{body}'), "zz", f"owl.{name}")
        self.err(owl('px, filters: {stripParams: "${zz}"}'), "zz", "owl.filters.stripParams")
        self.err('hooks: {on_startup: {preload: ["${zz}"]}}', "hooks.on_startup.preload[0]", "zz")

    def test_macros_that_double_each_other_are_refused(self):
        names = "".join(f', m{n}: "${{m{n - 1}}}${{m{n - 1}}}"' for n in range(1, 60))
        self.err(f'macros: {{m0: xx{names}}}\nmodels: {{owl: {{cmd: "${{m59}}", {PX}}}}}', "too much text")


class Environment(LoadCase):
    def test_environment_variables_are_inserted_before_yaml_is_parsed(self):
        """config T060"""
        self.assertEqual(self.owl("cmd: '${env.DIR}/srv ${PORT}'", environ={"DIR": "/opt"}).cmd, "/opt/srv 5800")
        model = self.owl('cmd: "${d} ${PORT}"', 'macros: {d: "${env.DIR}/x"}\n', environ={"DIR": "/opt"})
        self.assertEqual(model.cmd, "/opt/x 5800")
        self.err("\n" + owl('cmd: "${env.DIR}/srv", px'), "f0.yaml:2", "DIR", "not set")

    def test_yaml_comments_never_fail(self):
        """config T061"""
        self.ok("# k: ${env.NOPE}\n  # ${env.NOPE}\nstartPort: 1 # ${env.NOPE}\n")
        self.err("models:\n  owl:\n    cmd: |\n      x\n      # ${env.NOPE}\n", "NOPE", "not set")

    def test_placeholder_that_is_not_yaml_makes_comments_count(self):
        """config T063"""
        self.assertEqual(self.ok("apiKeys: [${env.KEY}]", environ={"KEY": "abc"}).api_keys[0].value, "abc")
        self.err("# ${env.NOPE}\napiKeys: [${env.KEY}]", "NOPE", environ={"KEY": "abc"})
        self.ok('# ${env.NOPE}\napiKeys: ["${env.KEY}"]', environ={"KEY": "abc"})

    def test_values_that_break_a_line_are_refused(self):
        """config T064"""
        for value in ("l1\nl2", "a\rb", "a\0b"):
            self.err('x: "${env.V}"', "V", "newlines", environ={"V": value})

    def test_backslashes_are_escaped_as_in_double_quotes(self):
        """config T065"""
        env = {"B": "x\\y"}
        self.assertEqual(self.owl('cmd: x, px, env: ["K=${env.B}"]', environ=env).env, ("K=x\\y",))
        self.assertEqual(self.owl("cmd: x, px, env: ['K=${env.B}']", environ=env).env, ("K=x\\\\y",))
        model = self.ok("models:\n  owl:\n    cmd: srv ${env.B} ${PORT}\n", environ=env).models["owl"]
        self.assertEqual(model.cmd, "srv x\\\\y 5800")
        self.assertEqual(command_line.split(model.cmd)[1], "x\\y")

    def test_empty_and_breaking_values_of_variables(self):
        """config T067"""
        self.err('apiKeys: ["${env.E}"]', "empty api key", environ={"E": ""})
        self.err("models:\n  owl:\n    name: ${env.C}\n", "YAML", environ={"C": "a: b"})

    def test_inserted_text_takes_part_in_typing(self):
        """config T068"""
        self.assertEqual(self.ok("globalTTL: ${env.T}", environ={"T": "60"}).global_ttl, 60)
        self.err('globalTTL: "${env.T}"', "globalTTL", environ={"T": "60"})

    def test_variables_may_contain_macros_and_be_in_keys(self):
        """config T069"""
        model = self.owl('cmd: x, px, name: "${env.R}"', "macros: {late: z}\n", environ={"R": "${late}"})
        self.assertEqual(model.name, "z")
        model = self.owl('cmd: x, px, metadata: {"${env.K}": 1}', environ={"K": "zone"})
        self.assertEqual(model.metadata, {"zone": 1})
        self.err('x: 1\nlogLevel: "${env.R}"', "env.R", environ={"R": "${env.R}"})
