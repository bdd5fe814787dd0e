"""A tiny model server for the demo: enough of the OpenAI, Anthropic and llama.cpp APIs to be swapped and shown.

It has no language model: a "voice" turns the last user message into words. It answers 503 for `--load-seconds`, streams
a word at a time, reports usage and timings, and exits on SIGTERM. It uses the standard library only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 8 << 20  # bytes
WORDS_PER_SECOND = 40.0

JsonObject = dict[str, object]
Choice = Callable[[str], JsonObject]


def parrot(prompt: str) -> str:
    """Repeat the prompt."""
    return f"Squawk! {prompt.strip() or 'Polly wants a prompt'} ... squawk!"


def poet(prompt: str) -> str:
    """A verse of four lines around the longest word of the prompt; the same word gives the same verse."""
    words = [word.strip(".,;:!?\"'()") for word in prompt.split()]
    theme = max(words, key=len, default="") or "silence"
    rng = random.Random(theme.lower())
    firsts = ["Slow", "Bright", "Small", "Far", "Warm", "Late"]
    things = ["river", "lamp", "window", "orchard", "engine", "harbour"]
    doings = ["hums", "waits", "turns", "remembers", "glows", "listens"]
    lines = [
        f"{rng.choice(firsts)} {rng.choice(things)}, and a word: {theme};",
        f"the {rng.choice(things)} {rng.choice(doings)} beside it.",
        f"Say {theme} once and the {rng.choice(things)} {rng.choice(doings)},",
        "say it twice and the evening is over.",
    ]
    return "\n".join(lines)


VOICES: dict[str, Callable[[str], str]] = {"parrot": parrot, "poet": poet}


def last_user_text(body: JsonObject) -> str:
    """The text of the last user message of a chat, completion or messages body; empty without one."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    prompt = body.get("prompt", body.get("input", ""))
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def pieces(text: str, limit: int) -> list[str]:
    """A text cut into words with the blanks after them, at most `limit` of them."""
    return re.findall(r"\S+\s*", text)[:limit]


class DemoServer(ThreadingHTTPServer):
    """Listens on a port of this machine; `ready_at` is when its model will be loaded."""

    daemon_threads = True

    def __init__(self, port: int, model: str, voice: str, load_seconds: float) -> None:
        super().__init__(("127.0.0.1", port), DemoHandler)
        self.model = model
        self.voice = VOICES[voice]
        self.ready_at = time.monotonic() + load_seconds
        self.ids = itertools.count(1)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that closed its connection is not worth a traceback."""


class DemoHandler(BaseHTTPRequestHandler):
    """One connection."""

    server: DemoServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        if self.path != "/health":  # requested a hundred times while it loads
            print(f"{self.command} {self.path} {args[1] if len(args) > 1 else ''}", flush=True)

    # -- responses -----------------------------------------------------------------------------------------

    def send_json(self, document: object, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_error_json(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        self.send_json({"error": {"message": message, "type": kind, "code": status}}, status)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, document: object) -> None:
        """Send a text as it is, or an object as JSON; its `type` is the event's name."""
        lead = f"event: {document['type']}\n" if isinstance(document, dict) and "type" in document else ""
        text = document if isinstance(document, str) else json.dumps(document)
        self.send_chunk(f"{lead}data: {text}\n\n".encode())

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def refuse_while_loading(self) -> bool:
        loading = time.monotonic() < self.server.ready_at
        if loading:
            self.send_error_json(503, "Loading model", "unavailable_error")
        return loading

    # -- requests ------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        pages = {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [{"id": self.server.model, "object": "model"}]},
            "/": {"model": self.server.model, "hint": "POST /v1/chat/completions"},
        }
        if self.refuse_while_loading():
            return
        if path in pages:
            self.send_json(pages[path])
        else:
            self.send_error_json(404, f"no such path: {path}")

    def do_POST(self) -> None:
        body = self.read_body()
        if body is None or self.refuse_while_loading():
            return
        routes = {
            "/chat/completions": self.chat,
            "/completions": self.completion,
            "/messages": self.messages,
        }
        respond = routes.get(self.path.partition("?")[0].removeprefix("/v1"))
        if respond is None:
            self.send_error_json(404, f"no such path: {self.path}")
        else:
            respond(body)

    def read_body(self) -> JsonObject | None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            self.close_connection = True
            self.send_error_json(413, "body too large")
            return None
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError as error:
            self.send_error_json(400, f"body is not JSON: {error}")
            return None
        if not isinstance(body, dict):
            self.send_error_json(400, "body is not a JSON object")
            return None
        return body

    def generate(self, body: JsonObject) -> tuple[Iterator[str], list[str], int]:
        """The tokens of the answer at the speed of a model, all of them at once, and the number of prompt tokens."""
        prompt = last_user_text(body)
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        tokens = pieces(self.server.voice(prompt), limit if isinstance(limit, int) else 512)

        def paced() -> Iterator[str]:
            for token in tokens:
                time.sleep(1 / WORDS_PER_SECOND)
                yield token

        return paced(), tokens, max(1, len(prompt.split()))

    def usage(self, prompt: int, tokens: list[str], began: float) -> JsonObject:
        """OpenAI's usage and llama.cpp's timings."""
        seconds = max(time.monotonic() - began, 1e-3)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens)}
        timings = {
            "prompt_n": prompt,
            "prompt_ms": prompt / 2,
            "prompt_per_second": 2000.0,
            "predicted_n": len(tokens),
            "predicted_ms": seconds * 1000,
            "predicted_per_second": len(tokens) / seconds,
        }
        return {"usage": usage, "timings": timings}

    def chat(self, body: JsonObject) -> None:
        whole: Choice = lambda text: {"message": {"role": "assistant", "content": text}}
        self.openai(body, "chat.completion", "chat.completion.chunk", whole, lambda text: {"delta": {"content": text}})

    def completion(self, body: JsonObject) -> None:
        choice: Choice = lambda text: {"text": text}
        self.openai(body, "text_completion", "text_completion", choice, choice)

    def openai(self, body: JsonObject, kind: str, chunk_kind: str, whole: Choice, part: Choice) -> None:
        """Answer at once, or as a stream; `whole` and `part` make the choice with a text."""
        began = time.monotonic()
        paced, tokens, prompt = self.generate(body)
        head = {"id": f"tiny-{next(self.server.ids)}", "created": int(time.time()), "model": self.server.model}
        if not body.get("stream"):
            choice = {"index": 0, **whole("".join(paced)), "finish_reason": "stop"}
            self.send_json({**head, "object": kind, "choices": [choice], **self.usage(prompt, tokens, began)})
            return
        head["object"] = chunk_kind
        self.begin_stream()
        for token in paced:
            self.send_event({**head, "choices": [{"index": 0, **part(token), "finish_reason": None}]})
        last = {"index": 0, **part(""), "finish_reason": "stop"}
        self.send_event({**head, "choices": [last], **self.usage(prompt, tokens, began)})
        self.send_event("[DONE]")
        self.send_chunk(b"")

    def messages(self, body: JsonObject) -> None:
        paced, tokens, prompt = self.generate(body)
        usage = {"input_tokens": prompt, "output_tokens": len(tokens)}
        message: JsonObject = {"id": f"msg_{next(self.server.ids)}", "type": "message", "role": "assistant"}
        message |= {"model": self.server.model, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
        if not body.get("stream"):
            self.send_json({**message, "content": [{"type": "text", "text": "".join(paced)}]})
            return
        opening = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
        block = {"type": "text", "text": ""}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        self.begin_stream()
        self.send_event({"type": "message_start", "message": opening})
        self.send_event({"type": "content_block_start", "index": 0, "content_block": block})
        for text in paced:
            delta = {"type": "text_delta", "text": text}
            self.send_event({"type": "content_block_delta", "index": 0, "delta": delta})
        self.send_event({"type": "content_block_stop", "index": 0})
        self.send_event({"type": "message_delta", "delta": ended, "usage": {"output_tokens": len(tokens)}})
        self.send_event({"type": "message_stop"})
        self.send_chunk(b"")


def main() -> None:
    """Parse the command line and serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--voice", choices=sorted(VOICES), default="parrot")
    parser.add_argument("--load-seconds", type=float, default=1.0)
    options = parser.parse_args()
    server = DemoServer(options.port, options.model, options.voice, options.load_seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"loading {options.model} for {options.load_seconds:g} s", flush=True)
    threading.Timer(options.load_seconds, print, [f"{options.model} listens on port {server.server_port}"]).start()
    server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
