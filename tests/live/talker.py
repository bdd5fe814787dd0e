"""A stand-in inference server that thinks, calls tools, sees images and embeds, for the clients of other APIs.

It says what it got: the number of images and the format asked for. Standard library only.
"""

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CALL = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


class Talker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    videos = {}

    def log_message(self, *_):
        pass

    def reply(self, document, status=200):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path.startswith("/v1/videos/"):
            self.video(*self.path.split("/")[3:])
            return
        self.reply({"status": "ok", "default_generation_settings": {"n_ctx": 2048}})

    def do_DELETE(self):
        found = self.videos.pop(self.path.rpartition("/")[2], None)
        self.reply({"deleted": found is not None}, 404 if found is None else 200)

    def video(self, name, *part):
        """A video is complete when it was asked for three times."""
        if name not in self.videos:
            self.reply({"error": {"message": f"no {name} here"}}, 404)
            return
        self.videos[name] += not part
        done = self.videos[name] >= 3
        self.reply({"data": name} if part else {"id": name, "status": "completed" if done else "in_progress"})

    def do_POST(self):
        if self.path == "/v1/videos":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.videos[name := f"video_{len(self.videos) + 1}"] = 0
            self.reply({"id": name, "status": "queued"})
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/embeddings":
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            rows = [{"index": number, "embedding": [float(len(text)), 0.5]} for number, text in enumerate(texts)]
            self.reply({"data": rows, "usage": {"prompt_tokens": 5, "total_tokens": 5}})
        elif self.path == "/v1/responses":
            self.respond(body)
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        else:
            self.reply({"error": {"message": f"no {self.path} here"}}, 404)

    def respond(self, body):
        """A response that says how many items it was given, without any state."""
        if body.get("previous_response_id"):
            self.reply({"error": {"message": "this server keeps nothing"}}, 400)
            return
        given = 1 if isinstance(body["input"], str) else len(body["input"])
        name = f"resp_{time.monotonic_ns()}"
        item = {
            "type": "message",
            "id": f"msg_{name}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": f"{given} items", "annotations": []}],
        }
        response = {"id": name, "object": "response", "created_at": 1, "model": body["model"], "tools": []}
        response |= {"tool_choice": "auto", "parallel_tool_calls": True, "status": "completed", "output": [item]}
        if not body.get("stream"):
            self.reply(response)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        begun = {**response, "status": "in_progress", "output": []}
        self.event({"type": "response.created", "sequence_number": 0, "response": begun})
        self.event({"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": item})
        self.event({"type": "response.completed", "sequence_number": 2, "response": response})
        self.wfile.write(b"0\r\n\r\n")

    def chat(self, body):
        messages = body["messages"]
        if messages[-1]["content"] == "break":
            self.reply({"error": {"message": "the context is full"}}, 400)
            return
        pieces = self.pieces(body)
        thinks = body.get("chat_template_kwargs", {}).get("enable_thinking")
        self.send(body, [{"reasoning_content": "hm"}, *pieces] if thinks else pieces)

    def pieces(self, body):
        """What the response is made of."""
        messages = body["messages"]
        answered = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        told = "".join(message["content"] for message in messages if str(message["content"]).startswith("Stay "))
        if body.get("tools") and not answered:
            return [{"tool_calls": [{"index": 0, **CALL}]}]
        images = sum(part["type"] == "image_url" for part in parts(messages[-1]))
        kind = body.get("response_format", {}).get("type", "text")
        last = f" {''.join(answered)}{told}"
        return [{"content": f"{images} images,"}, {"content": f" {kind}"}, {"content": last}]

    def more_of(self, body):
        """Further members of the choice of a document."""
        return {}

    def send(self, body, pieces):
        usage = {"prompt_tokens": 7, "completion_tokens": len(pieces), "total_tokens": 7 + len(pieces)}
        if not body.get("stream"):
            message = {"role": "assistant", "content": None}
            for piece in pieces:
                for name, value in piece.items():
                    message[name] = (message.get(name) or type(value)()) + value
            choice = {"message": message, "finish_reason": "stop", **self.more_of(body)}
            self.reply({"choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.event({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]})
            time.sleep(0.05)
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def event(self, document):
        data = f"data: {json.dumps(document)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def parts(message):
    return message["content"] if isinstance(message["content"], list) else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Talker).serve_forever()
