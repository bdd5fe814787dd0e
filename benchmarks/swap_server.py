"""The model server of the swap benchmark: starts fast and tells to the microsecond when what happened.

Run as `python -I -S swap_server.py --port P --ready-after S --notes FILE`. Each line of FILE is `EVENT PORT TIME`
with the system's monotonic clock: `born` (its first statement), `ready` (it answers 200), `term` (SIGTERM came),
`gone` (its last statement). Standard library only, and little of it.
"""

import time

BORN = time.monotonic()

import os  # noqa: E402
import select  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402

OK = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
LOADING = b"HTTP/1.1 503 Service Unavailable\r\nServer: uvicorn\r\nContent-Length: 0\r\n\r\n"


def main():
    import _signal as signals  # the Python half of `signal` takes 5 ms to import

    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    port, ready_after = int(words["--port"]), float(words["--ready-after"])
    notes = os.open(words["--notes"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(event, at=None):
        os.write(notes, b"%s %d %.6f\n" % (event, port, time.monotonic() if at is None else at))

    def leave(number, frame):
        note(b"term")
        note(b"gone")
        os._exit(0)

    signals.signal(signals.SIGTERM, leave)
    note(b"born", BORN)
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    ready_at = time.monotonic() + ready_after
    print("listening", flush=True)
    if not ready_after:
        note(b"ready", ready_at)
    told = not ready_after
    clients = {}
    while True:
        wait = None if told else max(0.0, ready_at - time.monotonic())
        readable, _, _ = select.select([listener, *clients.values()], [], [], wait)
        if not told and time.monotonic() >= ready_at:
            told = True
            note(b"ready", ready_at)
            print("ready", flush=True)
        for one in readable:
            if one is listener:
                client = listener.accept()[0]
                clients[client.fileno()] = client
                continue
            data = one.recv(65536)
            if data:
                one.sendall(OK if told else LOADING)
            if not data or b"connection: close" in data.lower():
                del clients[one.fileno()]
                one.close()


main()
