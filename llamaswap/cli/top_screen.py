"""The interactive screen of `top`: all models with the requests and devices, and keys that load, unload and pin."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from types import FrameType

from attrs import define, field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from llamaswap.cli import models
from llamaswap.cli.client import RESPONSE_TIMEOUT, WORK_TIMEOUT, ApiClient, ClientError, JsonObject, quoted
from llamaswap.cli.logs import open_log, stamp, with_times

KEYS = "up/down choose  l load  u unload  p pin  enter logs  s sort  ? help  q quit"
HELP = f"""{KEYS.replace("  ", chr(10))}

esc leaves the log or this help.
A pinned model is not evicted for another one.
s sorts by name, state, active requests or time since the load, in turn."""
ARROWS = {"\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down"}
SPECIAL = {**ARROWS, "\r": "enter", "\n": "enter", "\x1b": "esc"}
KEY = re.compile(r"\x1b[\[O][A-Z]|.", re.DOTALL)
ORDER = {name: place for place, name in enumerate(("ready", "starting", "stopping", "failed", "stopped"))}
SORTS: dict[str, Callable[[JsonObject], tuple[float, str]]] = {
    "name": lambda model: (0, model["id"]),
    "state": lambda model: (ORDER.get(models.state_of(model), 9), model["id"]),
    "active": lambda model: (-(model.get("active") or 0), model["id"]),
    "up": lambda model: (-(model.get("uptime_s") or 0), model["id"]),
}
WIDE = 100  # columns of a terminal that shows also what is needed least
KEY_INTERVAL = 0.1  # seconds to wait for a key before new data is looked for

Work = Callable[[], str]
"""What a key requests from the server; returns a line with the result. Raises ClientError."""


@define(eq=False)
class TopScreen:
    """What is shown, and which model is chosen. `head` and `tail` render what stands above and below the models."""

    client: ApiClient
    head: Callable[[JsonObject], list[RenderableType]]
    tail: Callable[[JsonObject], list[RenderableType]]
    data: JsonObject = field(factory=lambda: {"models": [], "queue": [], "requests": [], "gpus": [], "system": None})
    chosen: str = ""
    sort: str = "name"
    page: str = "models"
    note: str = ""
    failed: bool = False
    ended: bool = False
    log: list[str] = field(factory=list)

    @property
    def rows(self) -> list[JsonObject]:
        """The models in the order of the screen."""
        return sorted(self.data["models"], key=SORTS[self.sort])

    @property
    def model(self) -> JsonObject | None:
        """The chosen model, else the first one."""
        rows = self.rows
        return next((row for row in rows if row["id"] == self.chosen), rows[0] if rows else None)

    def press(self, key: str) -> Work | None:
        """Handle a key; returns the request to the server that it causes."""
        if key in ("q", "Q") and self.page == "models":
            self.ended = True
        elif key in ("esc", "q", "Q"):
            self.page = "models"
        elif key in ("?", "h"):
            self.page = "models" if self.page == "help" else "help"
        elif key == "s":
            names = list(SORTS)
            self.sort = names[(names.index(self.sort) + 1) % len(names)]
            self.show_note(f"sorted by {self.sort}")
        elif key in ("up", "k", "down", "j"):
            self._move(-1 if key in ("up", "k") else 1)
        elif self.model is not None:
            return self._of_model(key, self.model)
        return None

    def _move(self, step: int) -> None:
        names = [row["id"] for row in self.rows]
        if self.model is not None:
            place = names.index(self.model["id"]) + step
            self.chosen = names[min(max(place, 0), len(names) - 1)]

    def _of_model(self, key: str, model: JsonObject) -> Work | None:
        name = model["id"]
        self.chosen = name
        if key == "enter":
            self.page, self.log = ("models" if self.page == "logs" else "logs"), []
        elif key == "l":
            self.show_note(f"loading {name}")
            return partial(self._ask, f"load of {name} requested", f"/api/models/load/{quoted(name)}", "POST")
        elif key == "u":
            self.show_note(f"unloading {name}")
            path = f"/api/models/unload/{quoted(name)}"
            return partial(self._ask, f"{name} is unloaded", path, "POST", WORK_TIMEOUT)
        elif key == "p":
            pinned = bool(model.get("pinned"))
            path, method = f"/api/models/pin/{quoted(name)}", "DELETE" if pinned else "POST"
            return partial(self._ask, f"{name} is {'not pinned' if pinned else 'pinned'}", path, method)
        return None

    def _ask(self, done: str, path: str, method: str, timeout: float = RESPONSE_TIMEOUT) -> str:
        self.client.text(path, method=method, timeout=timeout)
        return done

    def show_note(self, note: str, failed: bool = False) -> None:
        """Show a line below the models."""
        self.note, self.failed = note, failed

    def log_of_chosen(self) -> list[str]:
        """The lines of the log that is shown, if one is, with their times. Raises ClientError."""
        if self.page != "logs" or self.model is None:
            return []
        history, news = open_log(self.client, self.model["id"], RESPONSE_TIMEOUT)
        news.close()
        lines = str(history["data"]).splitlines()
        return [stamp(line, when) + line for line, when in with_times(lines, history)]

    def view(self, height: int, width: int) -> Group:
        """The screen with this number of lines and columns."""
        name = self.model["id"] if self.model is not None else ""
        if self.page == "help":
            return Group(Text(HELP))
        if self.page == "logs":
            lines = self.log[-max(1, height - 2) :]
            shown = (Text(line, no_wrap=True) for line in lines)
            return Group(Text(f"log of {name}   esc back", style="bold"), *shown)
        head, tail = self.head(self.data), self.tail(self.data)
        foot = [
            Text(self.note, style="red" if self.failed else "dim", no_wrap=True),
            Text(KEYS, style="dim", no_wrap=True),
        ]
        console = Console(width=200, height=height)
        used = sum(len(console.render_lines(part)) for part in (*head, *tail, *foot))
        rows = self.rows
        room = max(3, height - used - 1)
        place = next((number for number, row in enumerate(rows) if row["id"] == name), 0)
        first = max(0, min(place - room // 2, len(rows) - room))
        table = models.model_table(rows[first : first + room], () if width >= WIDE else ("TTL", "PID", "PORT"))
        if rows:
            table.rows[place - first].style = "reverse"
        return Group(*head, table, *tail, *foot)


@contextmanager
def keys_of_terminal() -> Generator[Callable[[float], list[str]], None, None]:
    """Reads keys from standard input: the yielded function waits for keys, and returns none after its timeout.

    The terminal is restored at the end, also after SIGTERM, which would otherwise leave it without echo.
    """
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def read(timeout: float) -> list[str]:
        if not select.select([number], [], [], timeout)[0]:
            return []
        text = os.read(number, 1024).decode("utf-8", "replace")
        return [SPECIAL.get(key, key) for key in KEY.findall(text)] or ["q", "q"]  # the terminal is gone

    handler = signal.signal(signal.SIGTERM, _exit_by_signal)
    try:
        tty.setcbreak(number)
        yield read
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)


def _exit_by_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends a program whose terminal takes no output
    sys.exit(128 + number)


def show(screen: TopScreen, gather: Callable[[], JsonObject], console: Console, every: float) -> None:
    """Show the screen until the user leaves it. What waits for the server runs in threads, so that keys are read."""
    results: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def fetch() -> None:
        data, log = gather(), screen.log_of_chosen()
        results.put(lambda: _fetched(screen, data, log))

    def ask(work: Work) -> None:
        text = work()
        results.put(lambda: screen.show_note(text))

    def start(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except ClientError as error:
                text = str(error)
                results.put(lambda: screen.show_note(text, failed=True))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    fetching, due = start(fetch), time.monotonic() + every
    with keys_of_terminal() as read, Live(Text("..."), console=console, screen=True, auto_refresh=False) as live:
        while not screen.ended:
            keys = read(KEY_INTERVAL)
            for key in keys:
                if (work := screen.press(key)) is not None:
                    start(partial(ask, work))
            changed = bool(keys)
            while not results.empty():
                results.get()()
                changed = True
            if (time.monotonic() >= due or keys) and not fetching.is_alive():
                fetching, due = start(fetch), time.monotonic() + every
            if changed:
                live.update(screen.view(console.height, console.width), refresh=True)


def _fetched(screen: TopScreen, data: JsonObject, log: list[str]) -> None:
    screen.data = data
    screen.log = log or screen.log
    if screen.failed and screen.note.startswith(screen.client.url):  # the server is back
        screen.show_note("")
