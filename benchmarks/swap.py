"""What a swap costs above what the servers themselves need.

Two servers share the room. One request after the other asks for the model that is not loaded; the time from
sending the request to the first byte of its answer is taken. From that the time is subtracted that the same
command takes from exec to listening and that the same command takes from SIGTERM to exit, both measured here,
directly, without a proxy.
"""

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load import percentile
from benchmarks.subjects import ROOT, free_port, wait_for_port


def direct(ready_after, rounds=7):
    """(median seconds from start to ready, median seconds from SIGTERM to exit) of the server alone."""
    starts, stops = [], []
    for _ in range(rounds):
        port = free_port()
        words = [sys.executable, ROOT / "benchmarks" / "server.py", "--port", port, "--ready-after", ready_after]
        began = time.perf_counter()
        child = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
        wait_for_port(port)
        while ask(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")[:12] != b"HTTP/1.1 200":
            time.sleep(0.001)
        starts.append(time.perf_counter() - began)
        began = time.perf_counter()
        child.send_signal(signal.SIGTERM)
        child.wait(10)
        stops.append(time.perf_counter() - began)
    return statistics.median(starts), statistics.median(stops)


def ask(port, words, timeout=60):
    """The first bytes of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(words)
        return connection.recv(65536)


def proxied(command, ready_after, rounds):
    """Seconds to the first byte of each request that had to swap."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        server = f"{sys.executable} {ROOT}/benchmarks/server.py --port ${{PORT}} --ready-after {ready_after}"
        config = Path(folder) / "config.yaml"
        models = "".join(f"  {name}:\n    cmd: {server}\n" for name in ("one", "two"))
        config.write_text(f"startPort: {free_port()}\nmodels:\n{models}")
        words = command.format(config=config, port=port, python=sys.executable).split()
        with open(Path(folder) / "log", "wb") as log:
            child = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_port(port)
            took = []
            for number in range(rounds + 2):
                body = json.dumps({"model": ("one", "two")[number % 2]}).encode()
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
                began = time.perf_counter()
                answer = ask(port, head.encode() + body)
                took.append(time.perf_counter() - began)
                if b" 200 " not in answer[:16]:
                    raise RuntimeError(f"{answer!r}\n{(Path(folder) / 'log').read_text()[-3000:]}")
            return took[2:]  # the first load and the first swap warm caches up
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(30)


PRODUCT = "{python} -m twisted llamaswap --config {config} --listen 127.0.0.1:{port}"


def measure(command=PRODUCT, ready_after=0.0, rounds=15):
    """Figures in milliseconds: the servers' own part, and what the proxy adds to it."""
    start, stop = direct(ready_after)
    took = proxied(command, ready_after, rounds)
    above = [1e3 * (seconds - start - stop) for seconds in took]
    return {
        "ready_after_ms": 1e3 * ready_after,
        "server_start_ms": 1e3 * start,
        "server_stop_ms": 1e3 * stop,
        "swap_ms": 1e3 * statistics.median(took),
        "above_p50_ms": statistics.median(above),
        "above_p99_ms": percentile(above, 0.99),
    }


if __name__ == "__main__":
    for seconds in (0.0, 0.2, 1.0):
        print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else PRODUCT, seconds, 9)))
