"""A stand-in inference server for the examples of Ollama's clients: it calls the first tool that it is offered, makes
objects of a JSON schema, and reports log probabilities. Standard library only."""

import argparse
import json
from http.server import ThreadingHTTPServer

from talker import Talker

VALUES = {"string": "word", "integer": 22, "number": 0.5, "boolean": True}


def made(schema, definitions):
    """A value of a JSON schema."""
    if "$ref" in schema:
        return made(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for choices in ("enum", "anyOf"):
        if choices in schema:
            first = schema[choices][0]
            return made(first, definitions) if choices == "anyOf" else first
    if schema.get("type") == "object":
        return {name: made(one, definitions) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [made(schema["items"], definitions)]
    return VALUES.get(schema.get("type"), "word")


class ExampleEngine(Talker):
    def do_POST(self):
        if self.path == "/infill":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({"content": "    return s\n", "stop": True, "tokens_predicted": 3, "tokens_evaluated": 5})
        else:
            super().do_POST()

    def pieces(self, body):
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        if body.get("tools") and all(message["role"] != "tool" for message in body["messages"]):
            tool = body["tools"][0]["function"]
            call = {"name": tool["name"], "arguments": json.dumps(made(tool["parameters"], {}))}
            return [{"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": call}]}]
        if schema is not None:
            return [{"content": json.dumps(made(schema, schema.get("$defs", {})))}]
        return [{"content": "Rayleigh "}, {"content": "scattering."}]

    def more_of(self, body):
        if not body.get("logprobs"):
            return {}
        token = {"token": "Rayleigh", "logprob": -0.1, "bytes": [82]}
        return {"logprobs": {"content": [{**token, "top_logprobs": [token] * body.get("top_logprobs", 0)}]}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), ExampleEngine).serve_forever()
