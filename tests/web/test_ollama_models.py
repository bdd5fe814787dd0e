"""Ollama's clients pull, create, copy and delete models by changes of the configuration file."""

from __future__ import annotations

import json

from attrs import define, field
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from llamaswap.config import ConfigText, load
from llamaswap.errors import ConfigError, Problem
from llamaswap.web.configfile import Impact, ImpactModels
from llamaswap.web.errors import HttpError
from llamaswap.web.ollama_models import PulledFiles
from tests.doubles import FakeRouter
from tests.web.doubles import FakeFiles, World

TEXT = """\
models:
  alpha:
    cmd: serve --port ${PORT}  # mine
    aliases: [al]
  beta:
    cmd: serve --port ${PORT}
    filters:
      setParamsByID:
        beta:hot: {temperature: 1.5}
"""
SNAPSHOT = "/hub/models--org--tiny/snapshots/1/tiny-Q4_0.gguf"
NAME = "hf.co/org/tiny:Q4_0"


@define(eq=False)
class LoadedFiles(FakeFiles):
    """A configuration file in memory that is in force as soon as it is written."""

    router: FakeRouter = field(factory=FakeRouter)

    def check(self, text):
        load([ConfigText("config.yaml", text)], {})
        return Impact([], ImpactModels([], [], []))

    def write(self, text, source):
        super().write(text, source)
        self.router.config = load([ConfigText("config.yaml", text)], {}).config


def world(text=TEXT, editable=True):
    router = FakeRouter(load([ConfigText("config.yaml", text)], {}).config)
    return World(router, files=LoadedFiles(text, editable, router=router))


def post(here, path, body, method="POST"):
    return here.ask(path, method, [("Content-Type", "application/json")], json.dumps(body).encode())


def opened(here, path, body):
    return here.open(path, "POST", [("Content-Type", "application/json")], json.dumps(body).encode())


def lines(client):
    return [json.loads(line) for line in client.answer().body.splitlines()]


class CopyTests(TestCase):
    def test_copy_is_an_alias_and_the_rest_of_the_file_stays(self):
        here = world()
        answer = post(here, "/api/copy", {"source": "al:latest", "destination": "mine:8b"})
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(here.files.text, TEXT.replace("[al]", "[al, mine:8b]"))
        self.assertEqual(here.config().real("mine:8b"), "alpha")

    def test_copy_of_an_unknown_model_and_onto_a_known_name_change_nothing(self):
        here = world()
        self.assertEqual(post(here, "/api/copy", {"source": "ghost", "destination": "x"}).status, 404)
        self.assertEqual(post(here, "/api/copy", {"source": "alpha", "destination": "beta"}).status, 409)
        self.assertEqual(post(here, "/api/copy", {"source": "alpha"}).status, 400)
        self.assertEqual(here.files.written, [])

    def test_change_needs_the_right_to_edit(self):
        here = world(editable=False)
        for path, body in (
            ("/api/copy", {"source": "alpha", "destination": "x"}),
            ("/api/pull", {"model": NAME, "stream": False}),
            ("/api/create", {"model": "x", "from": "alpha", "stream": False}),
        ):
            answer = post(here, path, body)
            self.assertEqual(answer.status, 403, path)
            self.assertIn("--allow-config-edit", answer.json["error"])
        self.assertEqual(post(here, "/api/delete", {"model": "al"}, "DELETE").status, 403)


class CreateTests(TestCase):
    def test_created_model_has_other_parameters(self):
        here = world()
        body = {"model": "cool", "from": "alpha", "parameters": {"temperature": 0.1, "num_predict": 9}}
        found = lines(opened(here, "/api/create", body))
        self.assertEqual([line["status"] for line in found], ["using alpha", "success"])
        rules = here.config().models["alpha"].filters.set_params_by_id
        self.assertEqual(rules["cool"], {"temperature?": 0.1, "max_tokens?": 9})

    def test_created_model_without_parameters_is_an_alias(self):
        here = world()
        answer = post(here, "/api/create", {"model": "cool", "from": "beta", "stream": False})
        self.assertEqual(answer.json, {"status": "success"})
        self.assertEqual(here.config().real("cool"), "beta")

    def test_created_model_has_a_system_prompt_of_its_own(self):
        here = world()
        body = {"model": "mario", "from": "alpha", "system": 'You are "Mario":\nbe brief.', "stream": False}
        self.assertEqual(post(here, "/api/create", body).json, {"status": "success"})
        rules = here.config().models["alpha"].filters
        self.assertEqual(rules.system_prompt_by_id, {"mario": 'You are "Mario":\nbe brief.'})
        self.assertEqual((here.config().real("mario"), rules.system_prompt), ("alpha", ""))
        self.assertEqual(post(here, "/api/show", {"model": "mario"}).json["system"], body["system"])
        self.assertEqual(post(here, "/api/show", {"model": "alpha"}).json["system"], "")
        self.assertIn("# mine", here.files.text)

    def test_created_model_is_made_from_another_created_one_and_replaced(self):
        here = world()
        options = {"temperature": 0.1, "seed": 7, "stop": ["<a b>", "c"]}
        first = {"model": "one", "from": "beta", "system": "first", "parameters": options, "stream": False}
        for body in (
            first,
            {"model": "two", "from": "one:latest", "parameters": {"temperature": 0.9}, "stream": False},
            {"model": "one", "from": "alpha", "system": "again", "stream": False},
            {"model": "three", "from": "beta:hot", "parameters": {"temperature": 2}, "stream": False},
        ):
            self.assertEqual(post(here, "/api/create", body).json, {"status": "success"}, body)
        self.assertEqual(post(here, "/api/copy", {"source": "two", "destination": "four"}).status, 200)
        models = here.config().models
        self.assertEqual(models["alpha"].filters.ids, ("one",))
        rules = models["beta"].filters
        self.assertEqual(rules.system_prompt_by_id, {"two": "first", "four": "first"})
        self.assertEqual(rules.set_params_by_id["two"], {"seed?": 7, "stop?": ["<a b>", "c"], "temperature?": 0.9})
        self.assertEqual(rules.set_params_by_id["four"], rules.set_params_by_id["two"])
        self.assertEqual(rules.set_params_by_id["three"], {"temperature?": 2})
        shown = post(here, "/api/show", {"model": "two"}).json["parameters"]
        self.assertEqual(shown, 'seed 7\nstop "<a b>"\nstop "c"\ntemperature 0.9')
        self.assertEqual(post(here, "/api/delete", {"model": "two"}, "DELETE").status, 200)
        self.assertEqual(here.config().real("two"), None)
        self.assertEqual(set(here.config().models["beta"].filters.ids), {"beta:hot", "three", "four"})

    def test_name_of_a_model_is_not_replaced_and_a_system_prompt_must_be_a_text(self):
        for body, status in (
            ({"model": "beta", "from": "alpha", "system": "x"}, 409),
            ({"model": "x", "from": "alpha", "system": ["x"]}, 400),
            ({"model": "x", "from": "alpha", "system": "x" * 65_537}, 400),
            ({"model": "x", "from": "alpha", "system": "${ghost}"}, 422),
            ({"model": "x", "from": "alpha", "system": "say ${env.HOME}"}, 422),
            ({"model": "x", "from": "alpha", "parameters": {"stop": ["${PORT}"]}}, 422),
            ({"model": "${env.HOME}", "from": "alpha"}, 422),
        ):
            here = world()
            self.assertEqual(post(here, "/api/create", {**body, "stream": False}).status, status, body)
            self.assertEqual(here.files.written, [])

    def test_shell_variable_in_a_system_prompt_is_text(self):
        here = world()
        body = {"model": "x", "from": "alpha", "system": "use ${a b} and $HOME", "stream": False}
        self.assertEqual(post(here, "/api/create", body).json, {"status": "success"})
        self.assertEqual(here.config().models["alpha"].filters.system_prompt_by_id, {"x": "use ${a b} and $HOME"})

    def test_modelfile_without_a_source_is_not_created_either(self):
        answer = post(world(), "/api/create", {"model": "cool", "modelfile": "FROM alpha"})
        self.assertEqual(answer.status, 501)
        self.assertIn("modelfile", answer.json["error"])

    def test_more_than_that_is_not_created(self):
        for member in ("files", "adapters", "template", "messages", "license", "quantize"):
            answer = post(world(), "/api/create", {"model": "cool", "from": "alpha", member: "x"})
            self.assertEqual(answer.status, 501)
            self.assertIn(member, answer.json["error"])


class DeleteTests(TestCase):
    def test_alias_is_deleted_and_its_model_stays(self):
        here = world()
        self.assertEqual(post(here, "/api/delete", {"model": "al"}, "DELETE").status, 200)
        self.assertEqual(post(here, "/api/delete", {"name": "beta:hot"}, "DELETE").status, 200)
        self.assertEqual([here.config().real(name) for name in ("al", "beta:hot", "alpha")], [None, None, "alpha"])
        self.assertEqual(here.puller.removed, [])

    def test_model_that_was_not_pulled_is_not_deleted(self):
        here = world()
        answer = post(here, "/api/delete", {"model": "alpha"}, "DELETE")
        self.assertEqual((answer.status, here.files.written), (403, []))
        self.assertIn("was not pulled", answer.json["error"])
        self.assertEqual(post(here, "/api/delete", {"model": "ghost"}, "DELETE").status, 404)


class PullTests(TestCase):
    def setUp(self):
        self.here = world()

    def test_pull_reports_its_progress_and_configures_the_model(self):
        client = opened(self.here, "/api/pull", {"model": NAME})
        [(name, progress, work)] = self.here.puller.pulled
        self.assertEqual(name, "org/tiny:Q4_0")
        progress({"file": "tiny-Q4_0.gguf", "digest": "0123456789abcdef", "total": 10, "completed": 5})
        work.callback(PulledFiles("org/tiny", ["tiny-Q4_0.gguf"], [SNAPSHOT]))
        found = lines(client)
        self.assertEqual(
            [line["status"] for line in found],
            ["pulling manifest", "pulling 0123456789ab", "verifying sha256 digest", "writing manifest", "success"],
        )
        self.assertEqual((found[1]["digest"], found[1]["completed"]), ("sha256:0123456789abcdef", 5))
        model = self.here.config().models[NAME]
        self.assertIn(f"-m {SNAPSHOT}", model.cmd)
        self.assertIn("# mine", self.here.files.text)

        self.assertEqual(post(self.here, "/api/delete", {"model": NAME}, "DELETE").status, 200)
        self.assertEqual(self.here.puller.removed, [("org/tiny", ["tiny-Q4_0.gguf"])])
        self.assertEqual(self.here.files.text, TEXT)

    def test_files_that_another_model_uses_are_not_removed(self):
        opened(self.here, "/api/pull", {"model": NAME})
        self.here.puller.pulled[0][2].callback(PulledFiles("org/tiny", ["tiny-Q4_0.gguf"], [SNAPSHOT]))
        self.here.files.write(
            self.here.files.text.replace("serve --port ${PORT}  #", f"serve {SNAPSHOT} --port ${{PORT}}  #"), Source()
        )
        self.assertEqual(post(self.here, "/api/delete", {"model": NAME}, "DELETE").status, 200)
        self.assertEqual(self.here.puller.removed, [])

    def test_model_that_is_there_is_not_pulled(self):
        answer = post(self.here, "/api/pull", {"model": "alpha:latest", "stream": False})
        self.assertEqual((answer.json, self.here.puller.pulled), ({"status": "success"}, []))

    def test_names_of_ollamas_library_are_refused(self):
        answer = post(self.here, "/api/pull", {"model": "llama3.2"})
        self.assertEqual(answer.status, 501)
        self.assertIn("hf.co/", answer.json["error"])

    def test_failed_download_is_the_last_line(self):
        client = opened(self.here, "/api/pull", {"model": NAME})
        self.here.puller.pulled[0][2].errback(Failure(HttpError(502, "the hub is not reachable")))
        self.assertEqual(lines(client)[-1], {"error": "the hub is not reachable"})
        self.assertEqual(self.here.files.written, [])

    def test_client_that_leaves_ends_the_download(self):
        client = opened(self.here, "/api/pull", {"model": NAME})
        client.leave()
        self.assertEqual(self.here.puller.cancelled, 1)

    def test_third_download_at_a_time_is_refused(self):
        site = self.here
        group = next(one for one in site.groups() if hasattr(one, "pulling"))
        group.pulling = 2
        site.groups = lambda groups=[group]: groups
        self.assertEqual(post(site, "/api/pull", {"model": NAME}).status, 429)

    def test_configuration_that_the_loader_refuses_is_not_written(self):
        self.here.files = FakeFiles(TEXT, True, answer=ConfigError([Problem("no")]))
        answer = post(self.here, "/api/copy", {"source": "alpha", "destination": "x"})
        self.assertEqual((answer.status, self.here.files.written), (422, []))


@define
class Source:
    """Who wrote a text."""

    address: str = ""
    agent: str = ""
    of: str = ""
