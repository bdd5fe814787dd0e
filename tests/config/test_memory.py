"""The keys of memory and GPUs: sizes, devices, and the GPUs that reach a server."""

from llamaswap.config import sizes
from llamaswap.config.diff import diff
from llamaswap.config.schema.memory import GpuChoice
from tests.config.loading import LoadCase, owl

MEMORY = "routing:\n  memory: %s\n"
ON = "routing: {memory: on}\n"
VISIBLE = ("CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=%s", "ROCR_VISIBLE_DEVICES=%s")


def env_of(ids):
    return tuple(entry.replace("%s", ids) for entry in VISIBLE)


class SizeTests(LoadCase):
    def test_units(self):
        for text, mib in {
            "9GiB": 9216,
            "500MiB": 500,
            "2G": 2048,
            "1.5 g": 1536,
            "4096": 4096,
            "1GB": 954,
            "1k": 1,
            "0": 0,
            "1T": 1 << 20,
            "-1GiB": -1024,
        }.items():
            self.assertEqual(sizes.parse(text), mib, text)
        for text in ("", "GiB", "9 apples", "9GiBs", "1e3", "9" * 30, "1" * 50):
            self.assertIsNone(sizes.parse(text), text)
        self.assertEqual([sizes.render(size) for size in (9216, 500, 0)], ["9GiB", "500MiB", "0MiB"])


class SettingsTests(LoadCase):
    def memory(self, text):
        return self.ok(MEMORY % text).routing.memory

    def test_absent_memory_advises(self):
        for text in ("", "routing: {memory: null}"):
            self.assertEqual(self.ok(text).routing.memory.mode, "advise")

    def test_mode_alone_and_the_booleans_of_other_readers(self):
        given = {"on": "on", "true": "on", "yes": "on", "off": "off", "false": "off", "advise": "advise", '"on"': "on"}
        for text, mode in given.items():
            self.assertEqual(self.memory(text).mode, mode, text)
            self.assertEqual(self.memory(f"{{mode: {text}}}").mode, mode, text)

    def test_mapping(self):
        found = self.memory("{mode: on, reserve: {gpu: 1GiB, ram: 4096, gpu1: 0}, budget: {gpu0: 20GiB}, hold: 1m}")
        self.assertEqual(found.reserve, {"gpu": 1024, "ram": 4096, "gpu1": 0})
        self.assertEqual((found.budget, found.hold), ({"gpu0": 20480}, 60.0))

    def test_mistyped_mode_names_the_near_one(self):
        self.err(MEMORY % "advice", "f0.yaml:2", "routing.memory", "on, off or advise", "did you mean `advise`?")
        self.err(MEMORY % "{mode: advice}", "f0.yaml:2", "routing.memory.mode", "did you mean `advise`?")
        self.err(MEMORY % "[on]", "f0.yaml:2", "a list", "on, off or advise")

    def test_unknown_device_names_the_near_one(self):
        text = "routing:\n  memory:\n    reserve:\n      %s: 9GB\n"
        self.ok(text % "gpu")
        self.err(text % "vram", "f0.yaml:4", "unknown device 'vram'", "did you mean `gpu`?")
        self.err(text % "cpu", "f0.yaml:4", "did you mean `ram`?")
        self.err(text % "gpu-1", "f0.yaml:4", "did you mean `gpu1`?")
        self.err(text % "gpu01", "f0.yaml:4", "unknown device 'gpu01'")

    def test_size_that_cannot_be_used_has_its_line(self):
        text = "routing:\n  memory:\n    budget:\n      ram: %s\n"
        self.err(text % "-4GiB", "f0.yaml:4", "routing.memory.budget.ram", "at least 0")
        self.err(text % "lots", "f0.yaml:4", "a size such as 9GiB", "a number without a unit is in MiB")
        self.err(text % "true", "f0.yaml:4", "a size such as 9GiB")
        self.err(MEMORY % "{budget: 9GiB}", "f0.yaml:2", "{gpu: 1GiB, ram: 4GiB}")

    def test_memory_settings_restart_no_model(self):
        text = 'models: {owl: {cmd: "srv -p ${PORT}"%s}}\n'
        old, new = self.ok(text % ""), self.ok(text % ", memory: 9GiB" + ON)
        found = diff(old, new)
        self.assertEqual((found.restarted, found.retuned), ((), ("owl",)))
        self.assertEqual(found.settings, {"routing"})


class ModelTests(LoadCase):
    def test_declared_memory(self):
        for text, need in {
            "9GiB": {"": 9216},
            "512": {"": 512},
            "{gpu: 6GiB, gpu1: 6GiB, ram: 2GiB}": {"gpu": 6144, "gpu1": 6144, "ram": 2048},
            "null": {},
        }.items():
            self.assertEqual(self.owl(f"cmd: x, px, memory: {text}").memory, need, text)
        self.err(owl("cmd: x, px, memory: 9 apples"), "models.owl.memory", "9GiB")
        self.err(owl("cmd: x, px, memory: {gqu: 1GiB}"), "models.owl.memory.gqu", "did you mean `gpu`?")

    def test_gpus(self):
        for text, choice in {
            "auto": GpuChoice(auto=True),
            "2": GpuChoice(count=2),
            "[1, 0, 1]": GpuChoice(ids=(1, 0)),
            "null": GpuChoice(),
        }.items():
            self.assertEqual(self.owl(f"cmd: x, px, gpus: {text}", ON).gpus, choice, text)
            self.assertEqual(bool(choice), text != "null")
        for text in ("0", "-1", "65", "all", "[]", "[-1]", "[64]", "{a: 1}", "true"):
            self.err(owl(f"cmd: x, px, gpus: {text}"), "models.owl.gpus")

    def test_chosen_gpus_reach_command_and_environment(self):
        model = self.owl(
            'cmd: "srv --gpus ${GPUS} -p ${PORT}", gpus: auto, env: ["A=x${GPUS}"], memory: 1GiB,'
            " filters: {setParamsByID: {other: {a: 1}}}",
            ON,
        )
        self.assertEqual(self.loaded.warnings, ())
        self.assertEqual((model.cmd, model.env, model.gpu_ids), ("srv --gpus  -p 5800", ("A=x",), ()))
        placed = model.with_gpus((0, 2))
        self.assertEqual(placed.cmd, "srv --gpus 0,2 -p 5800")
        self.assertEqual((placed.env, placed.gpu_ids), (("A=x0,2", *env_of("0,2")), (0, 2)))
        self.assertEqual(placed.aliases, model.aliases)
        self.assertEqual(placed.with_gpus(()), model)

    def test_port_and_gpus_keep_each_other(self):
        model = self.owl('cmd: "srv ${GPUS} ${PORT}", gpus: auto', ON)
        for placed in (model.with_port(6000).with_gpus((1,)), model.with_gpus((1,)).with_port(6000)):
            self.assertEqual((placed.cmd, placed.port, placed.gpu_ids), ("srv 1 6000", 6000, (1,)))
            self.assertEqual(placed.endpoint.port, 6000)

    def test_listed_gpus_apply_without_a_choice(self):
        model = self.owl("cmd: srv, px, gpus: [3]")
        self.assertEqual((model.env, model.gpu_ids), (env_of("3"), (3,)))
        self.assertEqual(self.loaded.warnings, ())
        self.assertIs(model.with_gpus(()), model)

    def test_environment_of_the_model_is_not_replaced(self):
        model = self.owl('cmd: srv, px, gpus: [3], env: ["CUDA_VISIBLE_DEVICES=GPU-${GPUS}"]')
        self.assertEqual(
            model.env, ("CUDA_VISIBLE_DEVICES=GPU-3", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "ROCR_VISIBLE_DEVICES=3")
        )

    def test_model_without_gpus_is_not_placed(self):
        model = self.owl("cmd: srv, px")
        self.assertIs(model.with_gpus((1,)), model)
        self.assertEqual(model.env, ())

    def test_placeholder_without_gpus_is_reported(self):
        self.owl('cmd: "srv ${GPUS}", px')
        self.warned("f0.yaml:1", "${GPUS} is empty", "gpus: auto")
        self.owl('cmd: srv, px, env: ["A=${GPUS}"]')
        self.warned("models.owl.env", "${GPUS} is empty")
        self.err(owl("cmd: x, px, name: '${GPUS}'"), "models.owl.name", "known only in cmd and env")

    def test_own_macro_of_that_name_stays(self):
        model = self.owl('cmd: "srv ${GPUS}", px', "macros: {GPUS: 7}\n")
        self.assertEqual((model.cmd, self.loaded.warnings), ("srv 7", ()))

    def test_choice_without_memory_on_is_reported(self):
        for gpus in ("auto", "2"):
            self.owl(f"cmd: srv, px, gpus: {gpus}")
            self.warned("models.owl.gpus", "routing.memory: on")

    def test_other_gpus_restart_the_model(self):
        text = ON + "models: {owl: {cmd: srv, proxy: 'http://h:1', gpus: %s}}"
        self.assertEqual(diff(self.ok(text % "auto"), self.ok(text % "[1]")).restarted, ("owl",))
        self.assertEqual(diff(self.ok(text % "1"), self.ok(text % "2")).restarted, ("owl",))
