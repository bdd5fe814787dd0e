"""A fake server for the commands, and a way to run them."""

import io
import json

from click.testing import CliRunner

from llamaswap.cli.client import ApiClient
from llamaswap.cli.command_group import app
from llamaswap.cli.context import CliContext


class Answer(io.BytesIO):
    """A response: a status and a body."""

    def __init__(self, status, body):
        super().__init__(body)
        self.status = status


class Server:
    """Responds to "METHOD path" with a document, bytes, (status, document), or a callable of the JSON body."""

    def __init__(self, **answers):
        self.answers = {}
        self.asked = []
        self.headers = []
        self.bodies = []

    def on(self, what, answer):
        self.answers[what] = answer
        return self

    def send(self, method, path, body, headers, timeout):
        what = f"{method} {path}"
        self.asked.append(what)
        self.headers.append(headers)
        document = None if body is None else json.loads(body)
        self.bodies.append(document)
        answer = self.answers.get(what, (404, {"error": {"message": "not found"}}))
        if callable(answer):
            answer = answer(document)
        if isinstance(answer, BaseException):
            raise answer
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        return Answer(status, content if isinstance(content, bytes) else json.dumps(content).encode())


def sse(*events):
    """The bytes of events; each is a document or a word such as [DONE]."""
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def news(kind, data):
    """A message of /api/events: JSON in a JSON string."""
    return {"type": kind, "data": json.dumps(data)}


def chat(*texts, **more):
    """A streamed chat answer."""
    pieces = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    return sse(*pieces, {"choices": [], **more}, "[DONE]")


def invoke(words, server=None, stdin=None, env=None):
    """Run a command line; the result has exit_code, stdout, stderr."""
    chosen = server or Server()
    context = CliContext(connect=lambda url, key: ApiClient(url, chosen.send, key))
    return CliRunner().invoke(
        app,
        list(words),
        obj=context,
        input=stdin,
        env={"LLAMASWAP_URL": None, "LLAMASWAP_API_KEY": None, **(env or {})},
    )
