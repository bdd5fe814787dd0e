"""Defaults, typing, structure and the plain sections."""

import json

from llamaswap.config.schema.model import Capabilities
from tests.config.loading import ABC, PE, PX, LoadCase, W, owl


class Defaults(LoadCase):
    def test_empty_text_is_all_defaults(self):
        """config T001"""
        config = self.ok("")
        self.assertEqual(
            (config.health_check_timeout, config.start_port, config.log_level, config.log_time_format),
            (120, 5800, "info", ""),
        )
        self.assertEqual(
            (config.log_to_stdout, config.metrics_max_in_memory, config.capture_buffer), ("proxy", 1000, 5)
        )
        self.assertEqual((config.global_ttl, config.unload_timeout, config.performance.every), (0, 10, 5))
        self.assertEqual(config.ui.activity.session_id, ("X-Session-ID", "X-Litellm-Session-Id"))
        self.assertEqual(len(config.upstream.ignore_paths), 1)
        self.assertEqual(config.routing.router.use, "group")
        group = config.routing.router.settings.groups["(default)"]
        self.assertEqual((group.swap, group.exclusive, group.persistent, group.members), (True, True, False, ()))
        self.assertEqual((config.routing.scheduler.use, dict(config.models)), ("fifo", {}))
        for text in ("# only\n", "{}", "[]", "---", "null"):
            self.assertEqual(self.ok(text), config)

    def test_unknown_key_loads_with_a_warning_that_names_the_nearest(self):
        """config T003"""
        self.assertEqual(dict(self.ok("Models: {owl: {cmd: x}}").models), {})
        self.warned("f0.yaml:1", "Models", "`models`")

    def test_mistyped_key_names_the_key_that_was_meant(self):
        """Of words that are near, not the longer one that holds all the letters: `tll` is no `stall`."""
        self.owl("cmd: x, proxy: http://h, tll: 5, tlt: 5, macrso: 5")
        hints = {warning.path.rpartition(".")[2]: warning.hint for warning in self.loaded.warnings}
        meant = {"tll": "ttl", "tlt": "ttl", "macrso": "macros"}
        self.assertEqual(hints, {typed: f"did you mean `{word}`?" for typed, word in meant.items()})

    def test_tab_in_the_indentation_is_named(self):
        for text in ("models:\n\towl: {cmd: x}\n", "models:\n  owl:\n  \tcmd: x\n"):
            self.err(text, "blanks", "no tabs")

    def test_colon_in_a_command_is_named(self):
        self.err("models:\n  owl:\n    cmd: python3 -c \"print('a: b')\" x\n", "f0.yaml:3", "colon", "`|`")

    def test_place_for_anchors_is_not_an_unknown_key(self):
        self.ok("lib: &a {x: 1}\nx-mine: 2\n")
        self.assertEqual(self.loaded.warnings, ())

    def test_health_check_timeout_is_at_least_15(self):
        """config T004"""
        for text, want in (("3", 15), ("-7", 15), ("15", 15), ("60.9", 60), ("1e2", 100), ("~", 120)):
            self.assertEqual(self.ok(f"healthCheckTimeout: {text}").health_check_timeout, want)
        self.err('healthCheckTimeout: "60"', "healthCheckTimeout", "number")

    def test_model_health_check_timeout_counts_for_the_model_and_is_at_least_15(self):
        """config T005 (difference)"""
        for text, want in (("33", 33), ("600", 600), ("3", 15), ("0", 200), ("~", 200)):
            model = self.owl(f'cmd: "s ${{PORT}}", healthCheckTimeout: {text}', "healthCheckTimeout: 200\n")
            self.assertEqual(model.health_check_timeout, want)
        self.assertEqual(self.owl('cmd: "s ${PORT}"', "healthCheckTimeout: 200\n").health_check_timeout, 200)

    def test_log_words_are_read_leniently(self):
        """config T007"""
        self.assertEqual(self.ok('logLevel: " WARN "').log_level, "warn")
        self.assertEqual(self.ok("logLevel: verbose").log_level, "info")
        self.warned("logLevel")
        self.assertEqual(self.ok("logTimeFormat: KITCHEN").log_time_format, "kitchen")
        self.assertEqual(self.ok("logTimeFormat: iso").log_time_format, "")

    def test_log_to_stdout_is_read_strictly(self):
        """config T008"""
        self.err("logToStdout: Both", "logToStdout", "proxy", "upstream", "both", "none")
        self.err('logToStdout: ""', "logToStdout")
        self.assertEqual(self.ok("logToStdout: ~").log_to_stdout, "proxy")

    def test_duplicate_key_is_refused_with_its_line(self):
        """config T009"""
        self.err("startPort: 7000\nstartPort: 7001\n", "f0.yaml:2", "startPort", "already defined")
        self.err("a: {<<: {}, <<: {}}", "<<")

    def test_null_model_loads_with_zeros(self):
        """config T011"""
        model = self.ok("models: {owl: ~}").models["owl"]
        self.assertEqual((model.cmd, model.proxy, model.check_endpoint, model.timeouts.connect), ("", "", "", 0))
        self.warned("f0.yaml:1", "models.owl", "cmd is missing")

    def test_metadata_keeps_types_in_the_dialect(self):
        """config T012"""
        model = self.owl('cmd: x, px, metadata: {a: on, b: 12:30, c: 1e3, d: 2.0, e: 2024-5-6, f: 0x1F, g: ~, h: "5"}')
        want = {"a": "on", "b": "12:30", "c": 1000, "d": 2, "e": "2024-05-06T00:00:00Z", "f": 31, "g": None, "h": "5"}
        self.assertEqual(model.metadata, want)
        self.assertEqual(json.dumps(model.metadata), json.dumps(want))

    def test_only_the_first_document_is_read(self):
        """config T013"""
        self.assertEqual(self.ok("startPort: 6001\n---\nstartPort: 6002\n").start_port, 6001)

    def test_number_as_model_id_is_its_text(self):
        """config T015"""
        self.assertEqual(self.ok('models: {123: {cmd: "s ${PORT}"}}').models["123"].cmd, "s 5800")

    def test_models_must_be_a_mapping_of_mappings(self):
        """config T016"""
        self.err("models: []", "models", "mapping")
        self.err("models: {owl: text}", "models.owl", "mapping")
        self.assertEqual(dict(self.ok("models: ~").models), {})

    def test_log_requests_is_accepted(self):
        """config T017"""
        self.ok("logRequests: true\n" + W)
        self.assertEqual(self.loaded.warnings, ())

    def test_unknown_model_keys_are_checked_for_macros(self):
        """config T019"""
        self.err(owl('cmd: x, px, colour: "${nope}"'), "nope", "owl", "colour")

    def test_numbers_beyond_their_bounds_are_refused(self):
        """config T020"""
        self.err("globalTTL: -1", "globalTTL")
        self.err("unloadTimeout: -1", "unloadTimeout")
        self.assertEqual(self.ok("unloadTimeout: 0").unload_timeout, 10)
        for bad in ("0", "-4", "abc"):
            self.err(f"startPort: {bad}", "startPort")
        self.assertEqual(self.ok("startPort: 1").start_port, 1)

    def test_text_fields_take_what_was_written(self):
        model = self.owl("cmd: x, px, name: 1.10, description: 007, useModelName: True")
        self.assertEqual((model.name, model.description, model.use_model_name), ("1.10", "007", "True"))

    def test_list_as_a_document_is_refused(self):
        self.err("[a]", "f0.yaml", "mapping")


class Sections(LoadCase):
    def test_allowed_hosts_are_names_without_port_and_scheme(self):
        names = self.ok('allowedHosts: ["*", models.example.net, gpu_box]').allowed_hosts
        self.assertEqual(names, ("*", "models.example.net", "gpu_box"))
        for wrong in ("http://a.example", "a.example:80", "a.example/x", "*.example", ""):
            self.err(f'allowedHosts: ["{wrong}"]', "allowedHosts[0]")

    def test_api_keys_are_checked_without_being_shown(self):
        """config T095"""
        said = self.err('apiKeys: [ok, "b d"]', "apiKeys[1]")
        self.assertNotIn("b d", said)
        self.err('apiKeys: [""]', "empty api key")
        self.assertNotIn("a\tb", repr(self.ok('apiKeys: ["a\\tb"]')))
        self.err("apiKeys: [~]", "apiKeys[0]")

    def test_performance_durations(self):
        """config T096, core V112"""
        self.err("performance: {every: 4s}", "every", "5s")
        for text, want in (("1m30s", 90), ("0s", 5), ('"0"', 5)):
            self.assertEqual(self.ok(f"performance: {{every: {text}}}").performance.every, want)
        for bad in ("0", "15", '"15"', "1d", "-9s"):
            self.err(f"performance: {{every: {bad}}}", "every")
        self.assertEqual(self.ok("performance: {disabled: true}").performance.every, 5)
        self.ok("performance: {enable: true}")
        self.warned("enable")

    def test_session_headers_are_normalised(self):
        """config T097"""
        text = 'ui: {activity: {session_id: [" X-A ", "", x-a, X-B]}}'
        self.assertEqual(self.ok(text).ui.activity.session_id, ("X-A", "X-B"))
        for empty in ("[]", "~"):
            self.assertEqual(self.ok(f"ui: {{activity: {{session_id: {empty}}}}}").ui.activity.session_id, ())

    def test_ignored_paths_are_patterns(self):
        """config T099"""
        for text in ("upstream: {}", "upstream: {ignorePaths: []}"):
            (pattern,) = self.ok(text).upstream.ignore_paths
            self.assertTrue(all(pattern.search(path) for path in ("/a.js", "/x/y.json", "/favicon.ico")))
            self.assertFalse(any(pattern.search(path) for path in ("/v1/models", "/a.JS")))
        (pattern,) = self.ok('upstream: {ignorePaths: ["^/static/"]}').upstream.ignore_paths
        self.assertFalse(pattern.search("/a.js"))
        self.err('upstream: {ignorePaths: ["[a("]}', "upstream.ignorePaths", "[a(")
        self.err('upstream: {ignorePaths: ["(?=x)"]}', "upstream.ignorePaths")

    def test_preload_keeps_known_models_by_id(self):
        """config T100"""
        text = 'hooks: {on_startup: {preload: [" owl ", "", ghost, hoot]}}\n' + owl("cmd: x, px, aliases: [hoot]")
        self.assertEqual(self.ok(text).hooks.on_startup.preload, ("owl", "owl"))

    def test_store_path_is_checked(self):
        def store_problem(path):
            return "not writable" if path == "/no" else None

        self.err("store: {}", "store.path", "must not be empty")
        self.err("store: {path: /no}", "store.path", "not writable", store_problem=store_problem)
        self.assertEqual(self.ok("store: {path: ' /x '}", store_problem=store_problem).store.path, "/x")
        self.assertIsNone(self.ok("store: ~").store)


class ModelValues(LoadCase):
    def test_word_without_quotes_gets_no_hint_to_leave_them_out(self):
        hint = "without quotes"
        for value, hinted in (("soon", False), ("10s", False), ('"10"', True), ("'1.5'", True)):
            self.assertEqual(hint in self.err(owl(f"cmd: x, px, ttl: {value}"), "a whole number"), hinted)
            body = f"cmd: x, px, filters: {{clampParams: {{temperature: {{min: {value}}}}}}}"
            self.assertEqual(hint in self.err(owl(body), "numbers for min and max"), hinted)

    def test_ttl_falls_back_to_the_global_one(self):
        """config T080"""
        for given, want in (("", 300), (", ttl: 0", 0), (", ttl: 9", 9), (", ttl: -1", 300)):
            self.assertEqual(self.owl("cmd: x, px" + given, "globalTTL: 300\n").ttl, want)
        self.err(owl("cmd: x, px, ttl: -2"), "owl", "-2")

    def test_unload_timeout_falls_back_to_the_global_one(self):
        """config T081"""
        for given, want in (("", 25), (", unloadTimeout: 0", 25), (", unloadTimeout: 45", 45)):
            self.assertEqual(self.owl("cmd: x, px" + given, "unloadTimeout: 25\n").unload_timeout, want)
        self.err(owl("cmd: x, px, unloadTimeout: -1"), "owl", "unloadTimeout", "-1")

    def test_strip_params_are_sanitised(self):
        """config T083"""
        text = '"model, top_k, top_k, t, ${d}, , ,"'
        for name in ("stripParams", "strip_params"):
            filters = self.owl(f"cmd: x, px, filters: {{{name}: {text}}}", 'macros: {d: "t, top_p"}\n').filters
            self.assertEqual(filters.strip_params, ("t", "top_k", "top_p"))
            self.assertIn("top_k, top_k", filters.strip_params_text)
        both = self.owl("cmd: x, px, filters: {stripParams: a, strip_params: b}").filters
        self.assertEqual(both.strip_params, ("a",))
        self.assertEqual(
            self.owl('cmd: x, px, filters: {stripParams: "", strip_params: q}').filters.strip_params, ("q",)
        )
        self.assertEqual(self.owl("cmd: x, px, filters: {stripParams: model}").filters.strip_params, ())

    def test_set_params_never_touch_model_and_ascend(self):
        """config T084"""
        filters = self.owl("cmd: x, px, filters: {setParams: {model: x, b: 1, a: 2}}").filters
        self.assertEqual(list(filters.set_params), ["a", "b"])
        self.assertEqual(dict(self.owl("cmd: x, px, filters: {setParams: {model: x}}").filters.set_params), {})

    def test_set_params_by_id_make_aliases(self):
        """config T085"""
        config = self.ok(owl('cmd: x, px, filters: {setParamsByID: {"${MODEL_ID}": {e: 1}, "${MODEL_ID}:hi": {e: 2}}}'))
        self.assertEqual((config.real("owl:hi"), config.models["owl"].aliases), ("owl", ("owl:hi",)))
        self.assertEqual(config.models["owl"].filters.set_params_by_id["owl:hi"], {"e": 2})
        self.assertNotIn("other", config.models["owl"].filters.set_params_by_id)

    def test_system_prompts_by_id_make_aliases(self):
        rules = "cmd: x, px, filters: {setParamsByID: {hot: {e: 1}}, systemPromptByID: {hot: a, %s: b}}"
        config = self.ok(owl(rules % "calm"))
        self.assertEqual((config.models["owl"].aliases, config.real("calm")), (("hot", "calm"), "owl"))
        text = "models: {cat: {%s}, owl: {%s, filters: {systemPromptByID: {cat: a}}}}"
        self.err(text % (("cmd: x, proxy: 'http://localhost:9'",) * 2), "systemPromptByID")

    def test_set_params_by_id_keys_are_expanded_and_must_differ(self):
        """config T087"""
        before = "macros: {f: k1, g: k1}\nstartPort: 6300\n"
        self.err(before + owl('cmd: x, px, filters: {setParamsByID: {"${f}": {}, "${g}": {}}}'), "owl", "same value")
        self.err(owl('cmd: x, px, filters: {setParamsByID: {"${zz}": {}}}'), "zz", "owl", "setParamsByID")
        model = self.owl('cmd: "x ${PORT}", filters: {setParamsByID: {"v${PORT}": ~}}', before)
        self.assertEqual(model.aliases, ("v6300",))
        self.assertEqual(model.with_port(7).aliases, ("v7",))

    def test_aliases_are_unique(self):
        """config T088"""
        two = "models: {{ant: {{cmd: a, proxy: x, aliases: {}}}, bee: {{cmd: b, proxy: x, aliases: {}}}}}"
        self.err(two.format("[q]", "[q]"), "duplicate alias", "q")
        self.err(two.format("[q, q]", "[]"), "duplicate alias", "q")
        self.assertEqual(self.ok(two.format("[bee]", "[]")).real("bee"), "bee")

    def test_impossible_port_in_a_proxy_is_a_warning(self):
        for port in (65536, 70000, 10**12):
            self.assertIsNone(self.owl(f"cmd: x, proxy: 'http://h:{port}'").endpoint)
            self.warned("owl cannot start", str(port))
            self.ok(f"peers: {{p: {{proxy: 'http://h:{port}', models: [m]}}}}")
            self.warned("peers.p.proxy", str(port))
        self.assertEqual(self.owl("cmd: x, proxy: 'http://h:0065535'").endpoint.port, 65535)

    def test_model_takes_the_global_environment_policy_unless_it_has_its_own(self):
        self.assertEqual(self.owl("cmd: x, px").env_policy, "inherit")
        self.assertEqual(self.owl("cmd: x, px", "envPolicy: clean\n").env_policy, "clean")
        self.assertEqual(self.owl("cmd: x, px, envPolicy: inherit", "envPolicy: clean\n").env_policy, "inherit")
        self.err(owl("cmd: x, px, envPolicy: none"), "models.owl.envPolicy", "inherit, clean")
        self.err("envPolicy: none\n" + owl("cmd: x, px"), "envPolicy", "inherit, clean")

    def test_supersede_is_checked(self):
        self.err(owl("cmd: x, px, supersede: user"), "owl", "supersede", "session, client")
        self.assertEqual(self.owl("cmd: x, px, supersede: client").supersede, "client")
        self.assertEqual(self.owl("cmd: x, px").supersede, "")

    def test_forward_key_is_checked(self):
        self.err(owl("cmd: x, px, forwardKey: maybe"), "owl", "forwardKey", "auto, always, never")
        self.err("forwardKey: sometimes\nmodels: {}", "forwardKey", "auto, always, never")
        peer = "models: {}\npeers: {lab: {proxy: 'http://h', models: [m], forwardKey: %s}}"
        self.err(peer % "maybe", "peers.lab", "forwardKey")
        self.assertEqual(self.ok(peer % "never").peers["lab"].forward_key, "never")
        self.assertEqual(self.owl("cmd: x, px, forwardKey: always").forward_key, "always")
        self.assertEqual((self.owl("cmd: x, px").forward_key, self.ok("models: {}").forward_key), ("", "auto"))

    def test_signs_of_life_are_checked(self):
        self.err(owl("cmd: x, px, stall: {signs: [cpu, pulse]}"), "owl", "stall.signs", "pulse")
        self.err(owl("cmd: x, px, stall: {cpu: -1}"), "stall.cpu")
        self.err(owl("cmd: x, px, stall: {gpu: -1}"), "stall.gpu")
        self.assertEqual(self.owl("cmd: x, px, stall: {signs: [log], cpu: 3}").stall.signs, ("log",))

    def test_capabilities_are_checked(self):
        """config T089"""
        self.err(owl("cmd: x, px, capabilities: {in: [video]}"), "owl", "capabilities.in", "video")
        self.err(owl("cmd: x, px, capabilities: {out: [Text]}"), "capabilities.out", "Text")
        self.err(owl("cmd: x, px, capabilities: {context: -1}"), "capabilities.context")
        self.assertEqual(self.owl("cmd: x, px, capabilities: {tools: false}").capabilities, Capabilities())
        self.assertTrue(self.owl("cmd: x, px, capabilities: {reranker: true}").capabilities.reranker)

    def test_each_timeout_has_its_default(self):
        """config T091"""
        given = self.owl("cmd: x, px, timeouts: {connect: 45}").timeouts
        self.assertEqual(
            (given.connect, given.keepalive, given.response_header, given.tls_handshake, given.expect_continue),
            (45, 30, 0, 10, 1),
        )
        self.assertEqual(given.idle_conn, 90)
        self.assertEqual(self.owl("cmd: x, px, timeouts: {connect: 0}").timeouts.connect, 0)
        self.assertEqual(self.ok(PE).peers["hub"].timeouts.response_header, 60)
        text = 'peers: {p: {proxy: "http://p", models: [m], timeouts: {responseHeader: 0}}}'
        self.assertEqual(self.ok(text).peers["p"].timeouts.response_header, 0)

    def test_loading_state_is_inherited(self):
        """config T092"""
        config = self.ok(
            f"sendLoadingState: true\nmodels: {{ant: {{cmd: a, {PX}}}, bee: {{{PX}, sendLoadingState: no}}}}"
        )
        self.assertEqual([model.send_loading_state for model in config.models.values()], [True, False])

    def test_comfyui_gets_a_larger_limit_and_its_websockets_are_ignored(self):
        model = self.ok(f"models: {{comfyui_auto: {{cmd: a, {PX}}}}}").models["comfyui_auto"]
        self.assertEqual((model.concurrency_limit, model.compat.ignore_websockets), (50, True))
        self.assertEqual(self.ok(ABC).models["ant"].concurrency_limit, 0)
