"""Routing, groups, matrix, peers, selectors, profiles."""

from llamaswap.config.schema import Config
from llamaswap.scheduling.rules import rules_of
from tests.config.loading import ABC, PE, LoadCase

SETS = 'sets: {pair: "ant & bee", solo: cat}'


class Groups(LoadCase):
    def test_older_and_newer_spelling_mean_the_same(self):
        """config T101"""
        old = self.ok(ABC + "groups: {g: {members: [bee]}}")
        new = self.ok(ABC + "routing: {router: {settings: {groups: {g: {members: [bee]}}}}}")
        self.assertEqual(old, new)
        groups = old.routing.router.settings.groups
        self.assertEqual((groups["g"].swap, groups["g"].exclusive, groups["g"].persistent), (True, True, False))
        self.assertEqual(groups["(default)"].members, ("ant", "cat"))
        self.assertEqual(old.groups, groups)

    def test_groups_and_matrix_exclude_each_other(self):
        """config T103"""
        self.err(ABC + "groups: {g: {members: [bee]}}\nmatrix: {" + SETS + "}", "cannot use both")
        self.assertEqual(self.ok(ABC + "groups: {}\nmatrix: {" + SETS + "}").routing.router.use, "matrix")

    def test_older_and_newer_spelling_together_are_refused(self):
        """config T104"""
        self.err(ABC + "groups: {g: {members: [bee]}}\nrouting: {router: {use: group}}", "migrate")
        self.ok(ABC + "groups: {g: {members: [bee]}}\nrouting: {scheduler: {use: fifo}}")
        self.err("matrix: {}\nrouting: {router: {use: group}}", "migrate")
        self.err("matrix: {}", "matrix", "at least one set")

    def test_router_must_exist_and_have_settings(self):
        """config T105"""
        self.err("routing: {router: {use: matrix}}", "routing.router.settings.matrix")
        self.err("routing: {router: {use: Matrix}}", "unknown router", "Matrix")

    def test_scheduler_settings(self):
        """config T107, core V60"""
        text = ABC.replace("cmd: a,", "cmd: a, aliases: [a1],") + "routing: {scheduler: {settings: {fifo: {%s}}}}"
        self.err("routing: {scheduler: {use: lifo}}", "unknown scheduler", "lifo")
        self.err(text % "priority: {ghost: 1}", "ghost", "unknown model")
        fifo = self.ok(text % "priority: {a1: -3, bee: 2}").routing.scheduler.settings.fifo
        self.assertEqual(fifo.priority, {"ant": -3, "bee": 2})
        self.assertEqual((fifo.patience, fifo.max_queue), (10, 1000))
        self.assertEqual(rules_of(Config()).fifo.max_concurrent, 0)
        self.assertEqual(rules_of(self.ok(text % "maxConcurrent: 3")).fifo.max_concurrent, 3)
        self.err(text % "maxConcurrent: -1", "maxConcurrent")
        fifo = self.ok(text % "patience: 1m, maxQueue: 5").routing.scheduler.settings.fifo
        self.assertEqual((fifo.patience, fifo.max_queue), (60, 5))
        self.err(text % "maxQueue: 0", "maxQueue")
        self.err(text % "patience: -1s", "patience")
        self.assertEqual((fifo.backoff, fifo.backoff_max), (1, 60))
        fifo = self.ok(text % "backoff: 0s, backoffMax: 5m").routing.scheduler.settings.fifo
        self.assertEqual((fifo.backoff, fifo.backoff_max), (0, 300))
        self.err(text % "backoff: -1s", "backoff")
        self.err(text % "backoffMax: -1s", "backoffMax")
        self.err(text % "reclaim: -1s", "reclaim")
        self.err(text % "maxWait: -1s", "maxWait")
        self.err(text % "maxAsleep: -1", "maxAsleep")

    def test_null_group_is_all_false(self):
        """config T108"""
        group = self.ok("groups: {g: ~}").groups["g"]
        self.assertEqual((group.swap, group.exclusive, group.persistent, group.members), (False, False, False, ()))

    def test_group_members_are_checked(self):
        """core V67, core V68"""
        self.err(ABC + "groups: {g: {members: [ant, ant]}}", "ant", "twice", "g")
        self.err(ABC + "groups: {g: {members: [ant]}, h: {members: [ant]}}", "ant", "'g'", "'h'")
        self.err(ABC + "groups: {(default): {members: [ant]}}", "(default)")
        self.assertEqual(self.ok(ABC + "groups: {g: {members: [ant, ghost]}}").groups["g"].members, ("ant",))
        self.warned("ghost", "ignored")
        named = ABC.replace("cmd: a,", "cmd: a, aliases: [a1],")
        groups = self.ok(named + "groups: {g: {members: [a1, bee]}}").groups
        self.assertEqual((groups["g"].members, groups["(default)"].members), (("bee",), ("ant", "cat")))
        self.warned("a1")


class MatrixSection(LoadCase):
    def test_expressions_are_checked_at_load(self):
        """config T111, T112, core V77"""
        for expression, word in (
            ('""', "empty"),
            ("~", "empty"),
            ('"(ant"', "closing"),
            ('"ant bee"', "unexpected token"),
            ('"+ x"', "+"),
            ('"lab/owl"', "/"),
            ('"zz"', "zz"),
            ('"+zz"', "undefined set"),
            ('"+a"', "circular"),
        ):
            self.err(ABC + f"matrix: {{sets: {{a: {expression}}}}}", "matrix", word)

    def test_costs_and_vars_are_checked(self):
        """config T115, core V77"""
        text = ABC + "matrix: {vars: {v: ant}, evict_costs: {%s}, " + SETS + "}"
        for bad in ("0", "-2"):
            self.err(text % f"ant: {bad}", "ant", "positive")
        self.err(text % "ghost: 5", "ghost", "unknown var or model")
        self.assertEqual(self.ok(text % "v: 7").matrix.costs, {"ant": 7})
        self.err(ABC + "matrix: {vars: {a_b: ant}, " + SETS + "}", "a_b", "allowed characters", "1-32")
        self.err(ABC + "matrix: {vars: {v: ghost}, " + SETS + "}", "v", "ghost", "unknown model")

    def test_sets_keep_their_order(self):
        matrix = self.ok(ABC + "matrix: {sets: {z: ant, a: bee}}").matrix
        self.assertEqual(matrix.sets, (("z", "ant"), ("a", "bee")))
        self.assertTrue(matrix.program.can_coexist(["ant"]))


class Peers(LoadCase):
    def test_peers_are_checked(self):
        """config T131"""
        for text in ("{models: [m]}", '{proxy: "", models: [m]}'):
            self.err(f"peers: {{p: {text}}}", "peers.p", "proxy", "required")
        self.err('peers: {p: {proxy: "://x", models: [m]}}', "invalid", "://x")
        for models in ("", ", models: []", ", models: [~]"):
            self.err(f'peers: {{p: {{proxy: "http://h"{models}}}}}', "models", "empty")
        peer = self.ok('peers: {p: {proxy: "http://10.0.0.1:8080/api", models: [m]}}').peers["p"]
        self.assertEqual((peer.endpoint.authority, peer.endpoint.path), ("10.0.0.1:8080", "/api"))
        self.ok("peers: {p: ~}")
        peer = self.ok('peers: {p: {proxy: "http://h", models: auto}}').peers["p"]
        self.assertEqual((peer.auto, peer.models), (True, ()))

    def test_names_resolve_over_peers(self):
        """config T132"""
        config = self.ok(PE)
        self.assertEqual(config.peer("hub/big"), ("hub", "big"))
        self.assertEqual(config.peer("hub/lab/x"), ("hub", "lab/x"))
        self.assertEqual(config.peer("lab/x"), ("hub", "lab/x"))
        self.assertEqual(config.peer("tiny"), ("alt", "tiny"))
        self.assertIsNone(config.peer("big"))
        self.assertIsNone(config.base("nope"))
        self.assertEqual(self.ok(PE + 'models: {big: {cmd: x, proxy: "http://h"}}').base("big"), "big")
        self.assertEqual(config.split_path(["", "lab", "x", "v1"]), ("lab/x", 3))

    def test_qualified_names_are_unambiguous(self):
        """config T133"""
        text = 'peers: {%s: {proxy: "http://h", models: [%s]}, %s: {proxy: "http://h", models: [%s]}}'
        config = self.ok(text % ("p1", "m", "p2", "p1/m"))
        self.assertEqual((config.peer("p1/m"), config.peer("p2/p1/m")), (("p1", "m"), ("p2", "p1/m")))
        self.err(text % ("a", "b/c", '"a/b"', "c"), "ambiguous", "a/b/c")
        self.err(PE + 'models: {hub/big: {cmd: x, proxy: "http://h"}}', "hub/big", "model ID", "reserved")


class Selectors(LoadCase):
    base = ABC.replace("cmd: a,", "cmd: a, aliases: [a1],") + PE

    def one(self, body, name="s"):
        return f"{self.base}selectors: {{{name}: {{{body}}}}}"

    def test_selectors_are_checked(self):
        """config T135"""
        good = "strategy: pin, targets: [ant]"
        self.err(self.one(good, '" "'), "empty")
        self.err(self.one(good, "ant"), "model ID")
        self.err(self.one(good, "a1"), "alias")
        self.err(self.one("targets: [ant]"), "strategy is required")
        self.err(self.one("strategy: rand, targets: [ant]"), "rand", "unknown")
        self.err(self.one("strategy: pin"), "at least one")
        self.err(self.one("strategy: pin, targets: [ghost]"), "ghost", "unknown model")
        self.err(self.one("strategy: pin, targets: [s]"), "chaining")

    def test_strategies_have_rules(self):
        """config T136"""
        self.err(self.one("strategy: warm, targets: [tiny]"), "local", "warm")
        self.ok(self.one("strategy: pin, targets: [tiny]"))
        self.ok(self.one("strategy: failover, targets: [ant, tiny]"))
        self.err(self.one("strategy: spillover, targets: [ant], settings: {spillover: 0}"), ">= 1")
        self.ok(self.one("strategy: pin, targets: [ant], settings: {spillover: 0}"))
        self.assertEqual(self.ok(self.one("strategy: spillover, targets: [ant]")).selectors["s"].spillover, 1)

    def test_spillover_targets_differ_and_can_run_together(self):
        """config T137, core V83"""
        self.err(self.one("strategy: spillover, targets: [ant, a1]"), "duplicate", "ant")
        self.err(self.one("strategy: spillover, targets: [tiny, alt/tiny]"), "duplicate", "alt/tiny")
        self.ok(self.one("strategy: warm, targets: [ant, a1]"))
        both = self.one("strategy: spillover, targets: [ant, bee]")
        self.err(both, "not in a group")
        self.err(both + "\ngroups: {g: {members: [ant, bee]}}", "swap: false")
        self.err(both + "\ngroups: {g: {members: [ant]}, h: {members: [bee]}}", "share one group")
        self.ok(both + "\ngroups: {g: {swap: false, members: [ant, bee]}}")
        self.ok(both + "\nmatrix: {" + SETS + "}")
        self.err(both + "\nmatrix: {sets: {a: ant | bee}}", "matrix set")

    def test_profiles_are_checked(self):
        """config T139"""

        def text(body):
            return self.one("strategy: pin, targets: [ant]") + f"\nprofiles: {{p: {body}}}"

        self.err(text("[ant]"), "profiles.p", "mapping", "pins")
        for body in ("{pins: {}}", "~"):
            self.err(text(body), "p", "at least one")
        self.err(text("{pins: {x: ghost}}"), "p", "ghost")
        self.err(text("{pins: {x: ant, y: x}}"), "y", "x")
        self.err(text("{pins: {x: big}}"), "big")
        self.err(text("{pins: {' ': ant}}"), "blank")
        self.assertEqual(self.ok(text('{pins: {x: ~, y: ""}}')).profiles["p"].pins, {"x": "", "y": ""})
        self.ok(text("{pins: {a: ant, b: a1, c: hub/big, d: tiny, e: s, bee: ant}}"))


class Merging(LoadCase):
    def test_model_must_be_in_one_file(self):
        """config T143"""
        one = "models: {ant: ~}"
        self.err((one, one), "models", "ant", "f1.yaml")
        self.err(("matrix: {sets: {a: ant}}", "matrix: {sets: {b: ant}}"), "matrix", "sets")
        self.ok(ABC + "matrix: {vars: {v: ant}}", "matrix: {sets: {b: v}}")

    def test_scalars_of_two_files_must_be_equal(self):
        """config T144"""
        self.assertEqual(self.ok("globalTTL: 100", "globalTTL: 100").global_ttl, 100)
        self.err(("globalTTL: 100", "globalTTL: 200"), "globalTTL", "f1.yaml")
        self.err(("globalTTL: 100", 'globalTTL: "100"'), "globalTTL")
        self.err(("startPort: 5800", "startPort: [1]"), "incompatible")
        for empty in ("globalTTL:", "globalTTL: ~"):
            self.assertEqual(self.ok(empty, "globalTTL: 7").global_ttl, 7)
        self.err(("models:", "models: {ant: ~}"), "models")

    def test_lists_concatenate_and_maps_join(self):
        """config T141, T145"""
        config = self.ok("apiKeys: [a]\nmacros: {x: 1}", "apiKeys: [b]\nmacros: {y: '${x}'}\nglobalTTL: '${y}'")
        self.assertEqual([key.value for key in config.api_keys], ["a", "b"])
        self.assertEqual((list(config.macros), config.global_ttl), (["x", "y"], 1))
        self.err(("macros: {x: 1}", "macros: {x: 2}"), "macros.x")
        self.assertEqual(self.ok("", "# nothing"), self.ok(""))
