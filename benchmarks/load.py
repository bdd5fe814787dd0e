"""Load over loopback: raw asyncio connections, bounded in number and time, that stop by themselves.

Runs as a process of its own (`python -m benchmarks.load KIND ...`) so that it never shares an interpreter with
what it measures; prints one JSON document.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time


def percentile(values, share):
    """The value at `share` (0..1) of the sorted values; NaN when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def chat(size, model="bench"):
    """A chat body of about `size` bytes."""
    lead = json.dumps({"model": model, "temperature": 0.5, "messages": [{"role": "user", "content": "@"}]})
    return lead.replace("@", "w " * (max(0, size - len(lead)) // 2)).encode()


KEY = "sk-benchmark"  # the product asks for it; the others pass it on


def request(path, body, close=False):
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {KEY}", "User-Agent: benchmarks"]
    lines += ["Connection: close"] if close else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Requests(asyncio.Protocol):
    """One kept-alive connection that asks again as soon as it is answered."""

    def __init__(self, words, run):
        self.words, self.run = words, run

    def connection_made(self, transport):
        self.transport = transport
        self.buffer, self.left = b"", -1
        self.ask()

    def ask(self):
        self.began = time.perf_counter()
        self.transport.write(self.words)

    def data_received(self, data):
        if self.left < 0:
            self.buffer += data
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head[:16]:
                self.run.failed += 1
            at = head.lower().index(b"content-length:") + 15
            self.left = int(head[at:].split(b"\r\n", 1)[0]) - len(rest)
            self.buffer = b""
        else:
            self.left -= len(data)
        if self.left == 0:
            self.left = -1
            self.run.seconds.append(time.perf_counter() - self.began)
            if time.perf_counter() < self.run.until:
                self.ask()
            else:
                self.transport.close()

    def connection_lost(self, error):
        self.run.gone()


class Streams(asyncio.Protocol):
    """One event stream whose chunks say when they were sent."""

    def __init__(self, words, run):
        self.words, self.run = words, run

    def connection_made(self, transport):
        self.transport = transport
        self.began = time.monotonic()
        self.first = True
        self.tail = b""
        transport.write(self.words)

    def data_received(self, data):
        now = time.monotonic()
        if self.first:
            self.first = False
            self.run.first.append(now - self.began)
        data = self.tail + data
        at = data.find(b"data: ")
        while at >= 0:
            stamp = data[at + 6 : at + 40].split(b" ", 1)
            if len(stamp) < 2:
                break
            self.run.seconds.append(now - float(stamp[0]))
            at = data.find(b"data: ", at + 6)
        self.tail = data[at:] if at >= 0 else data[-5:]
        if data.endswith(b"0\r\n\r\n"):
            self.run.whole += 1
            self.transport.close()

    def connection_lost(self, error):
        self.run.gone()


class Run:
    def __init__(self, connections, seconds=0.0):
        self.until = time.perf_counter() + seconds
        self.seconds, self.first = [], []
        self.failed = self.whole = 0
        self.open = connections
        self.done = asyncio.get_running_loop().create_future()

    def gone(self):
        self.open -= 1
        if not self.open and not self.done.done():
            self.done.set_result(None)


async def requests(port, connections, seconds, size, model):
    run = Run(connections, seconds)
    words = request("/v1/chat/completions", chat(size, model))
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: Requests(words, run), "127.0.0.1", port)
    await asyncio.wait_for(run.done, seconds + 30)
    took = time.perf_counter() - began
    return {
        "requests": len(run.seconds),
        "failed": run.failed,
        "per_second": len(run.seconds) / took,
        "p50_ms": 1e3 * statistics.median(run.seconds),
        "p99_ms": 1e3 * percentile(run.seconds, 0.99),
    }


async def streams(port, connections, count, pause, size, model):
    run = Run(connections)
    path = f"/v1/chat/completions?mode=sse&n={count}&iv={pause}&sz={size}"
    words = request(path, json.dumps({"model": model, "stream": True}).encode(), close=True)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Streams(words, run), "127.0.0.1", port)
    await asyncio.wait_for(run.done, count * pause * 4 + 60)
    return {
        "chunks": len(run.seconds),
        "complete": run.whole,
        "p50_ms": 1e3 * statistics.median(run.seconds),
        "p99_ms": 1e3 * percentile(run.seconds, 0.99),
        "first_ms": 1e3 * statistics.median(run.first),
    }


async def big(port, direction, mb, model):
    """One body of `mb` MB up (multipart) or down; MB per second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    block = b"b" * (1 << 20)
    began = time.perf_counter()
    if direction == "up":
        lead = f'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n--x\r\nContent-Disposition: '
        lead += 'form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        tail = "\r\n--x--\r\n"
        length = len(lead) + (mb << 20) + len(tail)
        head = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        head += f"Authorization: Bearer {KEY}\r\n"
        head += f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
        writer.write((head + lead).encode())
        for _ in range(mb):
            writer.write(block)
            await writer.drain()
        writer.write(tail.encode())
        answer = await asyncio.wait_for(reader.read(1 << 16), 120)
        assert b" 200 " in answer[:16], answer[:200]
    else:
        path = f"/v1/chat/completions?mode=big&mb={mb}"
        writer.write(request(path, json.dumps({"model": model}).encode(), close=True))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)
        got = 0
        while got < mb << 20:
            data = await asyncio.wait_for(reader.read(1 << 20), 120)
            assert data, f"cut short after {got} bytes"
            got += len(data)
    took = time.perf_counter() - began
    writer.close()
    return {"mb_per_second": mb / took}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["requests", "streams", "up", "down"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="bench")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--mb", type=int, default=256)
    a = parser.parse_args()
    if a.kind == "requests":
        job = requests(a.port, a.connections, a.seconds, a.size, a.model)
    elif a.kind == "streams":
        job = streams(a.port, a.connections, a.count, a.pause, a.size, a.model)
    else:
        job = big(a.port, a.kind, a.mb, a.model)
    try:
        import uvloop

        result = uvloop.run(job)
    except ImportError:
        result = asyncio.run(job)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
