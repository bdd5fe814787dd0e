"""A stand-in inference server that misbehaves on command. Standard library only; up in well under 80 ms.

Run it as ``python -I -S tests/live/engine.py --port 0 ...``. It prints ``listening on PORT`` when it listens.

Where and when
  --host ADDRESS        listen there (127.0.0.1)
  --port N              listen there; 0 takes any free port
  --other-port N        listen there instead of --port (a command with the wrong port)
  --listen-after S      bind and listen only after S seconds: connections are refused before
  --ready-after S       answer 503 to everything for S seconds after the start, as a loading server does
  --name TEXT           the model name in answers (engine)
How it hangs or ends
  --health STATUS       what /health answers once ready (200); 302 points to /elsewhere
  --hang accept         accept, read, never answer anything
  --hang health         never answer /health; the rest works
  --hang backlog        listen but never accept
  --exit-after S        exit with --exit-code S seconds after the start
  --exit-code N         for the exits above and below (7)
  --exit-at-once        print a reason on stderr and exit before listening
  --crash-at K          abort after K chunks of a streamed answer, in the middle of the answer
  --freeze-at K         stop dead after K chunks of a streamed answer: connections are taken, nothing is answered
  --pause-at K          do nothing for --pause seconds after K chunks of a streamed answer
  --pause S             so long (0); with --busy it uses CPU time meanwhile
  --one-slot            one chat request at a time, the others wait; the rest works
  --one-thread          one request at a time, whatever it asks; the others wait
  --crash-before-head   abort when a chat request came in, before any answer byte
  --max-requests N      exit after the Nth chat request was answered
How it sleeps
  --sleep-takes S       answer /sleep only after S seconds (0); until woken, chats get 503
  --wake-takes S        answer /wake_up only after S seconds (0)
  --sleepless           answer both with 500
How it takes signals
  --ignore-term         SIGTERM changes nothing
  --term-after S        exit S seconds after SIGTERM (0)
  --term-count N        exit only at the Nth SIGTERM
Family
  --grandchild          also start a child that sleeps and holds stdout open
  --grandchild-ignores  the same, and it ignores SIGTERM
  --leave               exit at once after starting the grandchild, with --exit-code
  --double-fork         serve from a grandchild in a session of its own; the first process waits for it
  --double-fork-leave   the same, but the first process exits once it listens
What it says
  --say TEXT            print a line at the start; may be given several times
  --flood BYTES         print lines until so many bytes are out, as fast as they are taken; 0 floods for ever
  --pieces              write log lines in three pieces with pauses
  --env NAME            print NAME=value from the environment
How it answers
  --tokens N            chunks of a streamed answer (5)
  --interval S          between chunks (0)
  --reply TEXT          what a chat answers with ("tok" for each chunk)
  --reply-bytes N       pad a plain answer to this many bytes
  --slow-read RATE      read request bodies at RATE bytes per second
  --no-keepalive        close after every answer
  --server TEXT         the Server header (engine)
  --context N           the context length in /v1/models

Paths: /health; /v1/models; /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/messages (SSE where the
body says "stream": true); /drip?n=5&interval=0.1 for server-sent events; /big?bytes=N for a big body, &chunked=1;
/close?bytes=N for a body that ends with the connection; /status/N; /cut for half of an announced body; /ws echoes
websocket messages; /pid; /sleep, /wake_up and /is_sleeping as vLLM has them. Any other path answers with method, path,
headers and body of the request as JSON ("body" is base64 where it is no text, "length" always there).
"""

import _signal as signal
import os
import socket
import sys
import threading
import time

FLAGS = {
    "host": "127.0.0.1", "port": 0, "other-port": 0, "listen-after": 0.0, "ready-after": 0.0, "name": "engine",
    "health": 200, "hang": "", "exit-after": -1.0, "exit-code": 7, "exit-at-once": False, "crash-at": -1,
    "freeze-at": -1, "pause-at": -1, "pause": 0.0, "busy": False, "one-slot": False, "one-thread": False,
    "crash-before-head": False, "max-requests": 0, "ignore-term": False, "term-after": 0.0, "term-count": 1,
    "grandchild": False, "grandchild-ignores": False, "leave": False, "double-fork": False,
    "double-fork-leave": False, "say": [], "flood": -1, "pieces": False, "env": [], "tokens": 5, "interval": 0.0,
    "sleep-takes": 0.0, "wake-takes": 0.0, "sleepless": False,
    "reply": "", "reply-bytes": 0, "slow-read": 0, "no-keepalive": False, "server": "engine", "context": 0,
}  # fmt: skip

STARTED = time.monotonic()
REASONS = {200: "OK", 204: "No Content", 302: "Found", 404: "Not Found", 500: "Internal Server Error",
           503: "Service Unavailable"}  # fmt: skip
CHAT = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/completion")

log_lock = threading.Lock()
slot = threading.Lock()
served = 0
asleep = False


def parse(words):
    """The flags as a dictionary. argparse would cost a third of the start."""
    options = {name: list(value) if isinstance(value, list) else value for name, value in FLAGS.items()}
    words = iter(words)
    for word in words:
        name = word[2:]
        if not word.startswith("--") or name not in FLAGS:
            sys.exit(f"engine: unknown flag {word}")
        default = FLAGS[name]
        if default is False:
            options[name] = True
        elif isinstance(default, list):
            options[name].append(next(words))
        else:
            options[name] = type(default)(next(words))
    return options


def say(text):
    with log_lock:
        try:
            os.write(1, text.encode() + b"\n")
        except OSError:
            pass


def die(code):
    os._exit(code)


def abort():
    os.kill(os.getpid(), signal.SIGKILL)


# -- HTTP ------------------------------------------------------------------------------------------------------


class Gone(Exception):
    """The client left."""


class Reader:
    """Buffered reading from a socket, as slowly as asked."""

    def __init__(self, sock, rate):
        self.sock, self.rate, self.buffer = sock, rate, b""

    def more(self):
        size = 65536
        if self.rate:
            size = max(1, min(size, self.rate // 10))
            time.sleep(size / self.rate)
        data = self.sock.recv(size)
        if not data:
            raise Gone
        self.buffer += data

    def until(self, mark):
        while mark not in self.buffer:
            self.more()
        taken, self.buffer = self.buffer.split(mark, 1)
        return taken

    def exactly(self, count):
        pieces, missing = [], count
        while missing:
            if not self.buffer:
                self.more()
            piece, self.buffer = self.buffer[:missing], self.buffer[missing:]
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


class Request:
    def __init__(self, reader, sock):
        head = reader.until(b"\r\n\r\n").decode("latin-1")
        first, *rest = head.split("\r\n")
        self.method, self.target, self.version = first.split(" ")
        self.path, _, self.query_text = self.target.partition("?")
        self.headers = [tuple(part.strip() for part in line.split(":", 1)) for line in rest]
        self.fields = {name.lower(): value for name, value in self.headers}
        if self.fields.get("expect", "").lower() == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.fields.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while size := int(reader.until(b"\r\n").split(b";")[0], 16):
                pieces.append(reader.exactly(size))
                reader.exactly(2)
            while reader.until(b"\r\n"):
                pass
            self.body = b"".join(pieces)
        else:
            self.body = reader.exactly(int(self.fields.get("content-length", 0)))

    def query(self, name, default):
        for pair in self.query_text.split("&"):
            key, _, value = pair.partition("=")
            if key == name:
                return type(default)(value)
        return default


class Answer:
    def __init__(self, sock, options, close):
        self.sock, self.options, self.close = sock, options, close

    def head(self, status, *headers):
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}", f"Server: {self.options['server']}", *headers]
        if self.close:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def whole(self, status, body, kind="application/json", *headers):
        self.sock.sendall(self.head(status, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers) + body)

    def json(self, status, value):
        import json

        self.whole(status, json.dumps(value).encode())

    def begin_chunks(self, kind, *headers):
        self.sock.sendall(self.head(200, f"Content-Type: {kind}", "Transfer-Encoding: chunked", *headers))

    def chunk(self, data):
        self.sock.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def busies(request, options):
    """Whether this request waits for its turn."""
    return options["one-thread"] or (options["one-slot"] and request.path in CHAT)


def respond(request, answer, options):
    """Answer one request; True when the connection is of no use afterwards."""
    path = request.path
    if options["hang"] == "accept" or (options["hang"] == "health" and path == "/health"):
        threading.Event().wait()
    if time.monotonic() - STARTED < options["ready-after"]:
        answer.json(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
    elif path == "/health":
        status = options["health"]
        extra = ("Location: /elsewhere",) if status == 302 else ()
        answer.whole(status, b'{"status":"ok"}' if status != 204 else b"", "application/json", *extra)
    elif path == "/v1/models":
        context = {"max_model_len": options["context"]} if options["context"] else {}
        answer.json(200, {"object": "list", "data": [{"id": options["name"], "object": "model", **context}]})
    elif path in ("/sleep", "/wake_up", "/is_sleeping"):
        nap(path, request, answer, options)
    elif is_websocket(request):
        return websocket(request, answer)
    elif path in CHAT:
        chat(request, answer, options)
    elif path == "/drip":
        drip(answer, request.query("n", 5), request.query("interval", 0.1))
    elif path == "/big":
        return big(request, answer)
    elif path == "/close":
        answer.close = True
        answer.sock.sendall(answer.head(200, "Content-Type: application/octet-stream"))
        answer.sock.sendall(b"x" * request.query("bytes", 1000))
        return True
    elif path == "/cut":
        answer.sock.sendall(answer.head(200, "Content-Type: text/plain", "Content-Length: 1000") + b"half")
        return True
    elif path.startswith("/status/"):
        answer.json(int(path[8:]), {"status": int(path[8:])})
    elif path == "/pid":
        answer.json(200, {"pid": os.getpid(), "name": options["name"]})
    else:
        echo(request, answer)
    return answer.close


def nap(path, request, answer, options):
    """Give the memory back, or take it again."""
    global asleep
    if path == "/is_sleeping":
        answer.json(200, {"is_sleeping": asleep})
    elif options["sleepless"] or request.method != "POST":
        answer.json(500, {"error": "not now"})
    else:
        time.sleep(options["sleep-takes" if path == "/sleep" else "wake-takes"])
        asleep = path == "/sleep"
        say(f"{'asleep' if asleep else 'awake'} {request.query_text}")
        answer.whole(200, b"")


def echo(request, answer):
    seen = {"method": request.method, "path": request.target, "headers": request.headers, "length": len(request.body)}
    try:
        seen["body"] = request.body.decode()
    except UnicodeDecodeError:
        import base64

        seen["body"] = base64.b64encode(request.body).decode()
    answer.json(200, seen)


def big(request, answer):
    count, block = request.query("bytes", 1_000_000), b"0123456789abcdef" * 4096
    if request.query("chunked", 0):
        answer.begin_chunks("application/octet-stream")
        while count > 0:
            answer.chunk(block[:count])
            count -= len(block)
        answer.sock.sendall(b"0\r\n\r\n")
        return answer.close
    answer.sock.sendall(answer.head(200, "Content-Type: application/octet-stream", f"Content-Length: {count}"))
    while count > 0:
        answer.sock.sendall(block[:count])
        count -= len(block)
    return answer.close


def drip(answer, count, interval):
    answer.begin_chunks("text/event-stream")
    for number in range(count):
        answer.chunk(f"data: {number}\n\n".encode())
        time.sleep(interval)
    answer.chunk(b"data: [DONE]\n\n")
    answer.sock.sendall(b"0\r\n\r\n")


def chat(request, answer, options):
    """A completion in the OpenAI shape, whole or streamed, with usage at the end."""
    global served
    import json

    if options["crash-before-head"]:
        abort()
    if asleep:
        answer.json(503, {"error": "asleep"})
        return
    try:
        asked = json.loads(request.body or b"{}")
    except ValueError:
        asked = {}
    count, usage = options["tokens"], {"prompt_tokens": 3, "completion_tokens": options["tokens"]}
    usage["total_tokens"] = 3 + count
    words = options["reply"] or "tok " * count
    if asked.get("stream"):
        answer.begin_chunks("text/event-stream", "Cache-Control: no-cache")
        for number in range(count):
            if number == options["crash-at"]:
                abort()
            if number == options["freeze-at"]:
                os.kill(os.getpid(), signal.SIGSTOP)
            if number == options["pause-at"]:
                pause(options["pause"], options["busy"])
            delta = {"content": options["reply"] or f"tok{number} "}
            event = {"id": "x", "model": options["name"], "choices": [{"index": 0, "delta": delta}]}
            answer.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            time.sleep(options["interval"])
        if options["crash-at"] >= count:
            abort()
        answer.chunk(b"data: " + json.dumps({"id": "x", "choices": [], "usage": usage}).encode() + b"\n\n")
        answer.chunk(b"data: [DONE]\n\n")
        answer.sock.sendall(b"0\r\n\r\n")
    else:
        time.sleep(options["interval"] * count)
        message = {"role": "assistant", "content": words.ljust(options["reply-bytes"])}
        whole = {"id": "x", "model": options["name"], "asked": asked.get("model"), "pid": os.getpid()}
        answer.json(200, {**whole, "choices": [{"index": 0, "message": message}], "usage": usage})
    served += 1
    if options["max-requests"] and served >= options["max-requests"]:
        die(options["exit-code"])


def pause(seconds, busy):
    if not busy:
        time.sleep(seconds)
    until = time.monotonic() + seconds
    while busy and time.monotonic() < until:
        sum(range(2000))


def is_websocket(request):
    """It has websockets at /ws and /v1/realtime, and elsewhere with ?ws=1."""
    served = request.path in ("/ws", "/v1/realtime") or request.query("ws", 0)
    return served and request.fields.get("upgrade", "").lower() == "websocket"


def websocket(request, answer):
    """Echo data frames, answer pings, close when asked."""
    import base64
    import hashlib

    key = request.fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
    head = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    answer.sock.sendall("\r\n".join([*head, f"Sec-WebSocket-Accept: {accept}", "\r\n"]).encode())
    reader = answer.reader
    while True:
        first, second = reader.exactly(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(reader.exactly(2 if size == 126 else 8), "big")
        mask = reader.exactly(4) if second & 128 else b"\0\0\0\0"
        data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(reader.exactly(size)))
        code = first & 15
        reply = (first & 0xF0) | (10 if code == 9 else code)
        length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b""
        answer.sock.sendall(bytes([reply]) + (length or b"\x7f" + size.to_bytes(8, "big")) + data)
        if code == 8:
            return True


def converse(sock, options):
    """All requests of one connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = Reader(sock, options["slow-read"])
    try:
        with sock:
            while True:
                request = Request(reader, sock)
                wants_close = request.fields.get("connection", "").lower() == "close" or request.version == "HTTP/1.0"
                answer = Answer(sock, options, options["no-keepalive"] or wants_close)
                answer.reader = reader
                with slot if busies(request, options) else threading.Lock():
                    if respond(request, answer, options):
                        return
    except (Gone, OSError, ValueError):
        pass


# -- life ------------------------------------------------------------------------------------------------------


def handle_term(options):
    """Take SIGTERM as told. Handlers run in the main thread, which only sleeps."""
    seen = []

    def on_term(number, frame):
        seen.append(number)
        say(f"SIGTERM {len(seen)}")
        if not options["ignore-term"] and len(seen) >= options["term-count"]:
            if options["term-after"]:
                threading.Timer(options["term-after"], die, [0]).start()
            else:
                die(0)

    signal.signal(signal.SIGTERM, on_term)


def talk(options):
    for name in options["env"]:
        say(f"{name}={os.environ.get(name, '')}")
    for text in options["say"]:
        say(text)
    if options["pieces"]:
        for piece in (b"12:00:00 ", b"INFO ", b"in pieces\n"):
            os.write(1, piece)
            time.sleep(0.02)
    if options["flood"] >= 0:
        line, out = b"flood " * 20 + b"\n", 0
        block = line * 500
        while options["flood"] == 0 or out < options["flood"]:
            out += os.write(1, block)


def bear(options):
    """A child that does nothing but be there, with our stdout."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if options["grandchild-ignores"] else signal.SIG_DFL)
        while True:
            time.sleep(3600)


def serve(options, ready=None):
    time.sleep(options["listen-after"])
    with socket.socket(socket.AF_INET6 if ":" in options["host"] else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options["host"], options["other-port"] or options["port"]))
        except OSError as error:
            say(f"cannot bind port {options['port']}: {error.strerror}")
            die(1)
        listener.listen(512)
        say(f"listening on {listener.getsockname()[1]}")
        if ready is not None:
            os.write(ready, b"x")
        if options["hang"] == "backlog":
            threading.Event().wait()
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=converse, args=(sock, options), daemon=True).start()


def daemonize(options):
    """Serve from a process that left our session. Returns only there; here we wait for it or leave."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os.read(reading, 1)
        if options["double-fork-leave"]:
            die(0)
        while True:
            time.sleep(3600)
    os.setsid()
    if os.fork():
        die(0)
    os.close(reading)
    return writing


def main():
    options = parse(sys.argv[1:])
    ready = None
    if options["exit-at-once"]:
        os.write(2, b"error: invalid argument: --no-mmap\n")
        die(options["exit-code"])
    if options["double-fork"] or options["double-fork-leave"]:
        ready = daemonize(options)
    handle_term(options)
    if options["grandchild"] or options["grandchild-ignores"]:
        bear(options)
    if options["leave"]:
        die(options["exit-code"])
    if options["exit-after"] >= 0:
        threading.Timer(options["exit-after"], die, [options["exit-code"]]).start()
    threading.Thread(target=talk, args=(options,), daemon=True).start()
    threading.Thread(target=serve, args=(options, ready), daemon=True).start()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
