"""What a swap costs above what the servers themselves need.

Two servers share the room. One request after the other asks for the model that is not loaded; the time from
sending the request to the first byte of its answer is taken. From each the servers' own part of that very swap is
subtracted, as they noted it themselves: from the old one's SIGTERM to its last statement, and from the new one's
first statement to its readiness; and the time from starting such a process to its first statement (`exec_ms`, the
interpreter's start), measured without a proxy before and after. What remains is the proxy's: deciding, signalling,
noticing the exit, starting a process, noticing the readiness, and relaying.
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

SERVER = f"{sys.executable} -I -S {ROOT}/benchmarks/swap_server.py"


def exec_seconds(rounds=9):
    """Median seconds from starting a process to the server's first statement: no proxy can do without them."""
    took = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            port, notes = free_port(), Path(folder) / "notes"
            words = [*SERVER.split(), "--port", str(port), "--ready-after", "0", "--notes", str(notes)]
            began = time.monotonic()
            child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            wait_for_port(port)
            took.append(read(notes)[("born", port)][0] - began)
            child.terminate()
            child.wait(10)
    return statistics.median(took)


def read(notes):
    """{(event, port): times} of a notes file."""
    found = {}
    for line in notes.read_text().splitlines():
        event, port, at = line.split()
        found.setdefault((event, int(port)), []).append(float(at))
    return found


def ask(port, words, timeout=60):
    """The first bytes of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(words)
        return connection.recv(65536)


def proxied(command, ready_after, rounds):
    """For each request that had to swap: (its seconds, those of the servers' own exit and load)."""
    with tempfile.TemporaryDirectory() as folder:
        port, notes = free_port(), Path(folder) / "notes"
        server = f"{SERVER} --port ${{PORT}} --ready-after {ready_after} --notes {notes}"
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
                time.sleep(0.15)  # the answer before is recorded, the next process waits ready
                began = time.monotonic()
                answer = ask(port, head.encode() + body)
                ended = time.monotonic()
                if b" 200 " not in answer[:16]:
                    raise RuntimeError(f"{answer!r}\n{(Path(folder) / 'log').read_text()[-3000:]}")
                events = [(at, event) for (event, _), times in read(notes).items() for at in times if at >= began]
                when = {event: at for at, event in sorted(events)}
                own = when["ready"] - when["born"]
                if "term" in when:
                    own += when["gone"] - when["term"]
                took.append((ended - began, own))
            return took[2:]  # the first load and the first swap warm caches up
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(30)


PRODUCT = "{python} -m twisted llamaswap --config {config} --listen 127.0.0.1:{port}"


def measure(command=PRODUCT, ready_after=0.0, rounds=15):
    """Figures in milliseconds: the servers' own part, and what the proxy adds to it."""
    before = exec_seconds()
    took = proxied(command, ready_after, rounds)
    starting = statistics.median([before, exec_seconds()])
    above = [1e3 * (seconds - own - starting) for seconds, own in took]
    return {
        "ready_after_ms": 1e3 * ready_after,
        "own_ms": 1e3 * statistics.median(own for _, own in took),
        "swap_ms": 1e3 * statistics.median(seconds for seconds, _ in took),
        "exec_ms": 1e3 * starting,
        "above_p50_ms": statistics.median(above),
        "above_p99_ms": percentile(above, 0.99),
    }


if __name__ == "__main__":
    for seconds in (0.0, 0.2, 1.0):
        print(json.dumps(measure(sys.argv[1] if len(sys.argv) > 1 else PRODUCT, seconds, 9)), flush=True)
