"""A tiny model server for the demo: speaks enough of the OpenAI, Anthropic and llama.cpp APIs to be swapped and seen.

It knows no language model: a "voice" turns the last user message into words. It takes `--load-seconds` to load
(503 on every path until then), streams a word at a time, reports usage and timings, and exits on SIGTERM.
Standard library only; it must not import anything of the product.
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
from typing import Any

MAX_BODY = 8 << 20  # a demo does not take books
WORDS_PER_SECOND = 40.0


def parrot(heard: str) -> str:
    """Say it again, with feathers."""
    return f"Squawk! {heard.strip() or 'Polly wants a prompt'} ... squawk!"


def poet(heard: str) -> str:
    """A verse of four lines around the longest word heard; the same word gives the same verse."""
    words = [word.strip(".,;:!?\"'()") for word in heard.split()]
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


def last_user_text(body: dict[str, Any]) -> str:
    """The newest user text of a chat, completion or messages body; empty when there is none."""
    for message in reversed(body.get("messages") or []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    prompt = body.get("prompt", body.get("input", ""))
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def pieces(text: str, limit: int) -> list[str]:
    """The answer cut into words with the blanks after them, at most `limit` of them."""
    return re.findall(r"\S+\s*", text)[:limit]


class DemoServer(ThreadingHTTPServer):
    """The listening half: knows its model and when it will be loaded."""

    daemon_threads = True

    def __init__(self, port: int, model: str, voice: str, load_seconds: float) -> None:
        super().__init__(("127.0.0.1", port), DemoHandler)
        self.model = model
        self.voice = VOICES[voice]
        self.ready_at = time.monotonic() + load_seconds
        self.numbers = itertools.count(1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news."""


class DemoHandler(BaseHTTPRequestHandler):
    """One connection."""

    server: DemoServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        if self.path == "/health":  # asked a hundred times while it loads, more often the more is printed
            return
        print(f"{self.command} {self.path} {args[1] if len(args) > 1 else ''}", flush=True)

    # -- answers -------------------------------------------------------------------------------------------

    def send_json(self, document: object, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_error_json(self, status: int, message: str) -> None:
        self.send_json({"error": {"message": message, "type": "invalid_request_error", "code": status}}, status)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, document: object, name: str = "") -> None:
        lead = f"event: {name}\n" if name else ""
        text = document if isinstance(document, str) else json.dumps(document)
        self.chunk(f"{lead}data: {text}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def loading(self) -> bool:
        if time.monotonic() >= self.server.ready_at:
            return False
        self.send_json({"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, 503)
        return True

    # -- requests ------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.loading():
            return
        if path == "/health":
            self.send_json({"status": "ok"})
        elif path == "/v1/models":
            self.send_json({"object": "list", "data": [{"id": self.server.model, "object": "model"}]})
        elif path == "/":
            self.send_json({"model": self.server.model, "hint": "POST /v1/chat/completions"})
        else:
            self.send_error_json(404, f"no such path: {path}")

    def do_POST(self) -> None:
        body = self.read_body()
        if body is None or self.loading():
            return
        path = self.path.partition("?")[0].removeprefix("/v1")
        routes = {
            "/chat/completions": self.chat,
            "/completions": self.completion,
            "/messages": self.messages,
            "/embeddings": self.embeddings,
        }
        answer = routes.get(path)
        if answer is None:
            self.send_error_json(404, f"no such path: {self.path}")
        else:
            answer(body)

    def read_body(self) -> dict[str, Any] | None:
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

    def say(self, body: dict[str, Any]) -> tuple[Iterator[str], list[str], int]:
        """The answer's tokens at speaking speed, all of them at once, and the number of prompt tokens."""
        heard = last_user_text(body)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 512
        tokens = pieces(self.server.voice(heard), limit if isinstance(limit, int) else 512)

        def spoken() -> Iterator[str]:
            for token in tokens:
                time.sleep(1 / WORDS_PER_SECOND)
                yield token

        return spoken(), tokens, max(1, len(heard.split()))

    def figures(self, prompt: int, tokens: list[str], began: float) -> dict[str, Any]:
        """usage and llama.cpp's timings."""
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

    def chat(self, body: dict[str, Any]) -> None:
        self.openai(body, "chat.completion", lambda text: {"delta": {"content": text}}, "message")

    def completion(self, body: dict[str, Any]) -> None:
        self.openai(body, "text_completion", lambda text: {"text": text}, "text")

    def openai(self, body: dict[str, Any], kind: str, choice: Callable[[str], dict[str, Any]], member: str) -> None:
        began = time.monotonic()
        spoken, tokens, prompt = self.say(body)
        lead = {"id": f"tiny-{next(self.server.numbers)}", "created": int(time.time()), "model": self.server.model}
        if not body.get("stream"):
            text = "".join(spoken)
            whole: object = {"role": "assistant", "content": text} if member == "message" else text
            done = {"index": 0, member: whole, "finish_reason": "stop"}
            self.send_json({**lead, "object": kind, "choices": [done], **self.figures(prompt, tokens, began)})
            return
        chunk = {**lead, "object": kind + ".chunk" if member == "message" else kind}
        self.begin_stream()
        for token in spoken:
            self.event({**chunk, "choices": [{"index": 0, **choice(token), "finish_reason": None}]})
        last = {"index": 0, **choice(""), "finish_reason": "stop"}
        self.event({**chunk, "choices": [last], **self.figures(prompt, tokens, began)})
        self.event("[DONE]")
        self.chunk(b"")

    def messages(self, body: dict[str, Any]) -> None:
        spoken, tokens, prompt = self.say(body)
        usage = {"input_tokens": prompt, "output_tokens": len(tokens)}
        whole: dict[str, Any] = {"id": f"msg_{next(self.server.numbers)}", "type": "message", "role": "assistant"}
        whole |= {"model": self.server.model, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
        if not body.get("stream"):
            self.send_json({**whole, "content": [{"type": "text", "text": "".join(spoken)}]})
            return
        self.begin_stream()
        opening: dict[str, Any] = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 0}}
        self.typed({"type": "message_start", "message": opening})
        self.typed({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        for token in spoken:
            delta = {"type": "text_delta", "text": token}
            self.typed({"type": "content_block_delta", "index": 0, "delta": delta})
        self.typed({"type": "content_block_stop", "index": 0})
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        self.typed({"type": "message_delta", "delta": ended, "usage": {"output_tokens": len(tokens)}})
        self.typed({"type": "message_stop"})
        self.chunk(b"")

    def typed(self, event: dict[str, Any]) -> None:
        self.event(event, str(event["type"]))

    def embeddings(self, body: dict[str, Any]) -> None:
        texts = body.get("input", "")
        texts = texts if isinstance(texts, list) else [texts]
        data = []
        for index, text in enumerate(texts):
            rng = random.Random(str(text))
            data.append({"object": "embedding", "index": index, "embedding": [rng.uniform(-1, 1) for _ in range(16)]})
        usage = {"prompt_tokens": sum(len(str(text).split()) for text in texts), "total_tokens": 0}
        self.send_json({"object": "list", "data": data, "model": self.server.model, "usage": usage})


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
