"""The model server of the benchmarks: never the bottleneck, and able to say what it was asked for.

GET /health answers 200 (after `--ready-after` seconds; 503 before). POST answers a small JSON document with
usage; the query `mode=sse&n=COUNT&iv=SECONDS&sz=BYTES` streams events, each carrying the time it was sent;
`mode=big&mb=N` answers N MB. Bodies are read and dropped. It calls itself uvicorn, an event-driven server, so
that proxies may keep connections to it. Standard library only (uvloop is used when it is there).
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from urllib.parse import parse_qs

ANSWER = json.dumps(
    {
        "id": "bench",
        "object": "chat.completion",
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 200}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
SMALL = HEAD % len(ANSWER) + ANSWER
STREAM = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\nServer: uvicorn\r\nContent-Length: 0\r\n\r\n"
OK = HEAD % 15 + b'{"status":"ok"}'
MB = b"m" * (1 << 20)


class Connection(asyncio.Protocol):
    ready_at = 0.0

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = b""
        self.left = 0  # body bytes still to drop
        self.chunked = False
        self.target = b""
        self.resumed = asyncio.Event()
        self.resumed.set()

    def connection_lost(self, error):
        self.resumed.set()

    def pause_writing(self):
        self.resumed.clear()

    def resume_writing(self):
        self.resumed.set()

    def data_received(self, data):
        if self.left:
            taken = min(self.left, len(data))
            self.left -= taken
            data = data[taken:]
            if self.left:
                return
            self.answer()
        self.buffer += data
        while self.buffer:
            if self.chunked:
                end = self.buffer.find(b"0\r\n\r\n")
                if end < 0:
                    self.buffer = self.buffer[-4:]
                    return
                self.buffer = self.buffer[end + 5 :]
                self.chunked = False
                self.answer()
                continue
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.split(b"\r\n")
            self.target = lines[0].split(b" ")[1]
            length = 0
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                name = name.lower()
                if name == b"content-length":
                    length = int(value)
                elif name == b"transfer-encoding":
                    self.chunked = True
            if self.chunked:
                self.buffer = rest
                continue
            self.left = max(0, length - len(rest))
            self.buffer = rest[length:]
            if self.left:
                return
            self.answer()

    def answer(self):
        path, _, query = self.target.partition(b"?")
        if path == b"/health":
            self.transport.write(OK if time.monotonic() >= self.ready_at else LOADING)
        elif b"mode=" in query:
            asked = {name: values[0] for name, values in parse_qs(query.decode()).items()}
            task = self.stream if asked["mode"] == "sse" else self.big
            self.task = asyncio.get_running_loop().create_task(task(asked))
        else:
            self.transport.write(SMALL)

    async def stream(self, asked):
        count, pause, size = int(asked["n"]), float(asked["iv"]), int(asked["sz"])
        self.transport.write(STREAM)
        due = time.monotonic()
        for _ in range(count):
            due += pause
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.transport.is_closing():
                return
            await self.resumed.wait()
            event = b"data: %.6f " % time.monotonic()
            event += b"t" * (size - len(event) - 2) + b"\n\n"
            self.transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.transport.write(b"0\r\n\r\n")

    async def big(self, asked):
        self.transport.write(HEAD % (int(asked["mb"]) << 20))
        for _ in range(int(asked["mb"])):
            await self.resumed.wait()
            if self.transport.is_closing():
                return
            self.transport.write(MB)


async def serve(port, ready_after):
    Connection.ready_at = time.monotonic() + ready_after
    loop = asyncio.get_running_loop()
    await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    stop = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stop.set_result, None)
    print("listening", flush=True)
    await stop


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--core", type=int, help="run on this core")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    run(serve(options.port, options.ready_after))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
