"""Replicas in a configuration: their names and ports, and the rules that name their model."""

from llamaswap.config.diff import diff
from llamaswap.config.ports import keep
from llamaswap.scheduling.rules import rules_of
from tests.config.loading import LoadCase

PAIR = """
startPort: 6000
models:
  owl:
    cmd: "serve --gpus ${GPUS} --port ${PORT} --alias ${MODEL_ID}"
    cmdStop: "stop ${PORT}"
    gpus: auto
    aliases: [bird]
    tags: [small]
    ttl: 60
    replicas: %s
  hen: {cmd: "serve --port ${PORT}"}
  remote: {cmd: sleep 1, proxy: "http://h:1"}
routing: {memory: on%s}
"""


class ReplicaTests(LoadCase):
    def pair(self, count=3, rest=""):
        return self.ok(PAIR % (count, rest))

    def evict(self, target, *running, rest=""):
        config = self.ok((PAIR % (2, rest)).replace("memory: on", "memory: off"))
        return rules_of(config).evict(target, running)

    def test_replicas_have_own_names_and_ports_and_the_same_command(self):
        config = self.pair()
        self.assertEqual(self.loaded.warnings, ())
        self.assertEqual(config.copies("owl"), ("owl", "owl.r2", "owl.r3"))
        self.assertEqual(config.copies("hen"), ("hen",))
        ports = {name: config.models[name].port for name in config.models}
        self.assertEqual(ports, {"owl": 6001, "hen": 6000, "remote": None, "owl.r2": 6002, "owl.r3": 6003})
        second = config.models["owl.r2"]
        self.assertEqual(second.cmd, "serve --gpus  --port 6002 --alias owl")
        self.assertEqual((second.cmd_stop, second.endpoint.port, second.ttl), ("stop 6002", 6002, 60))
        self.assertEqual((second.replica_of, second.use_model_name, second.unlisted), ("owl", "owl", True))
        self.assertEqual(second.aliases + second.tags, ())
        self.assertEqual((config.real("bird"), config.members("small")), ("owl", ("owl",)))

    def test_replica_keeps_its_name_with_another_port_and_on_gpus(self):
        second = self.pair().models["owl.r2"]
        for placed in (second.with_port(7000).with_gpus((1,)), second.with_gpus((1,)).with_port(7000)):
            self.assertEqual(placed.cmd, "serve --gpus 1 --port 7000 --alias owl")
            self.assertEqual((placed.id, placed.port, placed.gpu_ids), ("owl.r2", 7000, (1,)))
            self.assertEqual((placed.replica_of, placed.aliases), ("owl", ()))

    def test_reload_adds_and_removes_replicas_and_keeps_ports(self):
        one, three = self.pair(1), self.pair(3)
        more, fewer = diff(one, keep(one, three)), diff(three, keep(three, one))
        self.assertEqual((more.added, more.restarted), (("owl.r2", "owl.r3"), ()))
        self.assertEqual((fewer.removed, fewer.restarted), (("owl.r2", "owl.r3"), ()))
        self.assertEqual(diff(three, keep(three, self.pair(3))).retuned, ())

    def test_fixed_port_is_an_error(self):
        for body in ("cmd: serve --port 9000, proxy: 'http://h:9000'", "cmd: 'serve ${PORT}', proxy: 'http://h:9000'"):
            text = f"models:\n  owl:\n    {body.replace(', p', chr(10) + '    p')}\n    replicas: 2\n"
            self.err(text, "f0.yaml:5", "replicas needs ${PORT} in cmd and proxy", "in place of the fixed port")

    def test_number_of_replicas_is_bounded(self):
        self.err(PAIR % (0, ""), "models.owl.replicas must be at least 1")
        self.err(PAIR % (65, ""), "models.owl.replicas must be at most 64")

    def test_taken_name_is_an_error(self):
        clash = "  owl.r2: {cmd: 'serve ${PORT}'}\nrouting:"
        self.err((PAIR % (2, "")).replace("routing:", clash), "replica 2 has the name 'owl.r2', which is taken")
        selectors = "\nselectors: {owl.r2: {strategy: pin, targets: [hen]}}\n"
        self.err(PAIR % (2, "") + selectors, "replica 2 has the name 'owl.r2', which is taken")

    def test_servers_of_a_model_do_not_replace_one_another(self):
        self.assertEqual(self.evict("owl.r2", "owl"), ())
        self.assertEqual(self.evict("owl", "hen", "owl.r2"), ("hen",))
        self.assertEqual(self.evict("hen", "owl", "owl.r2"), ("owl", "owl.r2"))
        policy = rules_of(self.pair(2)).evict
        self.assertTrue(policy.protects("owl", "owl.r2"), "also if memory is missing")
        self.assertFalse(policy.protects("hen", "owl.r2"))

    def test_groups_and_the_matrix_name_the_model_for_all_its_servers(self):
        group = ", router: {use: group, settings: {groups: {g: {swap: false, members: [owl, hen]}}}}"
        self.assertEqual(self.evict("hen", "owl", "owl.r2", rest=group), ())
        self.assertEqual(self.evict("remote", "hen", "owl.r2", rest=group), ("hen", "owl.r2"))
        matrix = ", router: {use: matrix, settings: {matrix: {vars: {o: owl, h: hen}, sets: {a: o & h}}}}"
        self.assertEqual(self.evict("owl.r2", "hen", "owl", rest=matrix), ())
        self.assertEqual(self.evict("remote", "hen", "owl.r2", rest=matrix), ("hen", "owl.r2"))

    def test_selectors_profiles_preloads_and_priorities_name_the_model(self):
        config = self.ok(
            PAIR % (2, ", scheduler: {settings: {fifo: {priority: {bird: 5}}}}")
            + "profiles: {day: {pins: {best: owl}}}\nselectors: {pick: {strategy: warm, targets: [owl, hen]}}\n"
            + "hooks: {on_startup: {preload: [owl, small]}}\n"
        )
        self.assertEqual(config.hooks.on_startup.preload, ("owl", "owl"))
        self.assertEqual(config.routing.scheduler.settings.fifo.priority, {"owl": 5})
