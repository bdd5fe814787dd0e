"""`run`: a conversation in the terminal, the choice of its model, and images."""

import base64
import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from click import Abort
from twisted.trial.unittest import SynchronousTestCase

from llamaswap.cli.chat import MAX_IMAGE, Conversation, choose, images_in, talk
from llamaswap.cli.client import ApiClient
from llamaswap.cli.context import CliContext
from tests.cli.doubles import Server, chat, invoke


class Typed:
    """What the user types, line by line, and the prompts shown for it."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.prompts = []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line


class ConversationCase(SynchronousTestCase):
    def setUp(self):
        self.server = Server().on("POST /v1/chat/completions", chat("fine"))
        self.server.on("GET /v1/models", {"data": [{"id": name} for name in ("owl", "cat", "cat-big")]})
        self.server.on("GET /v1/models/cat", {}).on("GET /v1/models/cat-big", {}).on("GET /v1/models/owl", {})
        self.context = CliContext(connect=lambda url, key: ApiClient(url, self.server.send, key))

    def talk(self, *lines):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            talk(self.context, Conversation("owl"), False, Typed(*lines))
        return [body for body in self.server.bodies if body]


class TalkTests(ConversationCase):
    def test_conversation_is_sent_with_each_prompt_until_it_is_cleared(self):
        bodies = self.talk("one", "two", "/clear", "three")
        self.assertEqual(
            [[message["content"] for message in body["messages"]] for body in bodies],
            [["one"], ["one", "fine", "two"], ["three"]],
        )

    def test_lines_between_triple_quotes_are_one_prompt(self):
        (body,) = self.talk('"""/first', "", 'second"""')
        self.assertEqual(body["messages"][0]["content"], "/first\n\nsecond")
        (_, one_line) = self.talk('"""all"""')
        self.assertEqual(one_line["messages"][0]["content"], "all")

    def test_parameters_are_set_and_removed(self):
        first, second = self.talk("/set temperature 0.2", "/set stop END", "a", "/set stop", "b")
        self.assertEqual((first["temperature"], first["stop"]), (0.2, "END"))
        self.assertEqual((second["temperature"], "stop" in second), (0.2, False))

    def test_model_and_system_prompt_can_be_changed(self):
        first, second = self.talk("/model cat", "/system be brief", "a", "/model", "3", "/system", "b")
        self.assertEqual((first["model"], first["messages"][0]), ("cat", {"role": "system", "content": "be brief"}))
        self.assertEqual((second["model"], second["messages"][0]["role"]), ("cat-big", "user"))

    def test_change_to_an_unknown_model_keeps_the_model_and_a_prefix_is_enough(self):
        bodies = self.talk("/model nosuch", "a", "/model cat-", "b")
        self.assertEqual([body["model"] for body in bodies], ["owl", "cat-big"])

    def test_interrupted_prompt_does_not_end_the_conversation(self):
        _, second = self.talk("one", KeyboardInterrupt, "two")
        self.assertEqual([message["content"] for message in second["messages"]], ["one", "fine", "two"])

    def test_image_that_is_not_a_file_is_named(self):
        missing = []
        self.assertEqual(images_in("see no-file.png and http://x/a.png", missing.append), [])
        self.assertEqual(missing, ["no-file.png"])

    def test_unknown_command_is_not_sent_and_a_path_is_a_prompt(self):
        (body,) = self.talk("/nope", "/etc/hosts is a file", "/bye", "never sent")
        self.assertEqual(body["messages"][0]["content"], "/etc/hosts is a file")

    def test_error_of_the_server_does_not_end_the_conversation(self):
        answers = iter([(500, {"error": "broken"}), chat("fine")])
        self.server.on("POST /v1/chat/completions", lambda _: next(answers))
        self.assertEqual(len(self.talk("a", "b")), 2)

    def test_image_named_in_a_prompt_is_attached(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        image = folder / "a.png"
        image.write_bytes(b"PNG")
        with (folder / "large.png").open("wb") as file:
            os.truncate(file.fileno(), MAX_IMAGE + 1)
        first, second = self.talk(f"what is {image} ?", f"and {folder}/large.png", "and no-file.png")
        text, part = first["messages"][0]["content"]
        self.assertEqual(text["text"], f"what is {image} ?")
        self.assertEqual(part["image_url"]["url"], f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}")
        self.assertEqual(second["messages"][-1]["content"], "and no-file.png")  # the large one is refused


class ChoiceTests(ConversationCase):
    def test_model_is_chosen_by_number_name_or_its_beginning(self):
        for typed, chosen in (("1", "owl"), ("cat", "cat"), ("o", "owl"), ("cat-", "cat-big")):
            with redirect_stderr(io.StringIO()) as shown:
                self.assertEqual(choose(self.context, Typed("0", "9", "ca", "", typed)), chosen)
            self.assertIn("2  cat\n", shown.getvalue())

    def test_only_model_is_not_asked_for_and_an_end_of_input_leaves(self):
        self.assertRaises(Abort, choose, self.context, Typed())
        self.server.on("GET /v1/models", {"data": [{"id": "owl"}]})
        self.assertEqual(choose(self.context, Typed()), "owl")


class CommandTests(ConversationCase):
    def test_run_without_a_terminal_needs_a_model_and_a_prompt(self):
        for words, stdin, text in ((["run"], "hello", "name a MODEL"), (["run", "owl"], "", "no prompt")):
            done = invoke(words, self.server, stdin=stdin)
            self.assertEqual(done.exit_code, 2)
            self.assertIn(text, done.stderr)

    def test_image_of_the_command_line_is_attached(self):
        image = Path(self.mktemp())
        image.write_bytes(b"x")
        done = invoke(["run", "owl", "what is this", "-i", str(image), "--json"], self.server)
        self.assertEqual(json.loads(done.stdout)["content"], "fine")
        self.assertEqual(len(self.server.bodies[0]["messages"][0]["content"]), 2)

    def test_image_without_a_prompt_is_refused_instead_of_dropped(self):
        image = Path(self.mktemp())
        image.write_bytes(b"x")
        keyboard = io.BytesIO()
        keyboard.isatty = lambda: True
        done = invoke(["run", "owl", "-i", str(image)], self.server, stdin=keyboard)
        self.assertEqual(done.exit_code, 2, done.output)
        self.assertIn("--image needs a PROMPT", done.stderr)
