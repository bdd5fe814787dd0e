"""A browser, the real server with its demo models, and the mock: what the checks of the interface stand on."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tests.soak.world import children
from tests.ui import mock

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ROOT = Path(__file__).parents[2]
AXE = ROOT / "ui" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = Path(os.environ.get("UI_SHOTS", "")) if os.environ.get("UI_SHOTS") else None
FAILURES = SHOTS or Path(tempfile.gettempdir()) / "llamaswap-ui-failures"
# What the page promises in seconds holds on a machine with nothing else to do (UI_SLACK=1); one that is busy gets more.
SLACK = float(os.environ.get("UI_SLACK", "5"))
PATIENCE = 60.0  # seconds for everything else; only a failure waits so long
WIDTHS = (1440, 1280, 390)
# What was changed last is drawn: observers of sizes and themes have run, and so have the renders that they asked for.
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def why_not() -> str:
    """Why the browser checks cannot run here; empty when they can."""
    if not Path(CHROMIUM).exists():
        return f"{CHROMIUM} is not installed (Debian: apt install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright for Python is not installed (pip install playwright)"
    return ""


@cache
def playwright() -> Any:
    """Its driver, one for this process."""
    from playwright.sync_api import sync_playwright

    started = sync_playwright().start()
    atexit.register(started.stop)
    return started


BROWSERS: list[Any] = []


def browser() -> Any:
    """The browser of this process, which is started once, or again if it died: a check has its own context in it."""
    if not BROWSERS or not BROWSERS[-1].is_connected():
        BROWSERS.append(playwright().chromium.launch(executable_path=CHROMIUM, args=FLAGS))
    return BROWSERS[-1]


def kill_browser() -> None:
    """End it from another thread, where Playwright must not be used."""
    for driver, words in children(os.getpid()).items():
        if "playwright" in " ".join(words):
            for process in children(driver):
                os.kill(process, signal.SIGKILL)


class RealServer:
    """`twist llamaswap` with two tiny models, one that breaks, a profile and a selector."""

    running: ClassVar[list[RealServer]] = []

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="llamaswap-ui-"))
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        """The arguments of Python that start it."""
        sys.path.insert(0, str(ROOT))
        from llamaswap.demo import demo_config

        python = json.dumps(sys.executable)[1:-1]
        config = demo_config(real=False) + (
            "  broken:\n"
            "    name: Broken\n"
            "    description: ends before it is healthy\n"
            "    cmd: |\n"
            f"      {python} -c \"import sys; print('error: no such file'); sys.exit(3)\" ${{PORT}}\n"
            "  missing:\n"
            "    name: Missing\n"
            "    cmd: /no/such/program ${PORT}\n"
            "profiles:\n"
            "  calm:\n"
            "    description: everything goes to the poet\n"
            "    pins: {parrot: poet}\n"
            "selectors:\n"
            "  any:\n"
            "    strategy: warm\n"
            "    targets: [parrot, poet]\n"
        )
        path = self.folder / "config.yaml"
        path.write_text(config, encoding="utf-8")
        return [
            *("-m", "twisted", "llamaswap", "--allow-config-edit"),
            *("--config", str(path), "--listen", "127.0.0.1:0"),
        ]

    def surroundings(self) -> tuple[Path, dict[str, str]]:
        """Its folder, and what its environment has besides this one's."""
        return ROOT, {}

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = self.command()
        folder, environment = self.surroundings()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self.running.append(self)
        output = self._process.stdout
        assert output is not None
        seen = ""
        for line in output:
            seen += line
            found = re.search(r"listening on (http://[^\s\"]+:\d+)", line)
            if found:
                self.url = found[1].replace("localhost", "127.0.0.1")
                break
        else:
            raise AssertionError(f"the server did not start:\n{seen}")
        # Its log goes on; unread, a full pipe would stop it.
        import threading

        threading.Thread(target=output.read, daemon=True).start()

    def stop(self) -> None:
        """Stop it with everything it started."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process = None
            self.running.remove(self)
        shutil.rmtree(self.folder, ignore_errors=True)


def ask(url: str, data: object = None, method: str | None = None) -> Any:
    """JSON there and back."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE) as got:
        text = got.read()
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


def say(url: str, model: str, text: str = "x") -> None:
    """One chat request to a model, which loads it."""
    ask(f"{url}/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}]})


def hold(url: str) -> Any:
    """A chat with the parrot that streams for twelve seconds or until it is closed; it has begun."""
    chat = {"model": "parrot", "stream": True, "messages": [{"role": "user", "content": "x " * 600}]}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(chat).encode(), {"Content-Type": "application/json"}
    )
    held = urllib.request.urlopen(request, timeout=PATIENCE)
    until(lambda: "squawk" in held.readline().decode().lower())
    return held


def newest(url: str) -> int:
    """The number of the newest finished request; 0 before the first."""
    rows = ask(f"{url}/api/metrics/activity?limit=1")["data"]
    return int(rows[0]["id"]) if rows else 0


def unload(url: str) -> None:
    """Put every model out and wait until it is."""
    ask(f"{url}/api/models/unload", {})
    until(lambda: not ask(f"{url}/running")["running"])


def until(what: Callable[[], Any]) -> Any:
    """Ask again until there is an answer that is true, and give it."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError("it did not come about in time")
        time.sleep(0.05)
    return found


def viewport(width: int) -> dict[str, int]:
    """The size of a window of this width."""
    return {"width": width, "height": 844 if width < 600 else 860}


class BrowserCase(unittest.TestCase):
    """A fresh context, and so fresh storage, for each test.

    A test that fails says what its pages showed and logged, and where their pictures are.
    """

    url = ""

    def __init__(self, name: str = "runTest") -> None:
        super().__init__(name)
        self.pages_open: list[Any] = []
        test = getattr(self, name, None)
        if test is not None:

            def told() -> None:
                with self.telling(name):
                    test()

            setattr(self, name, told)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """What fails within takes along what the open pages showed."""
        try:
            yield
        except unittest.SkipTest:
            raise
        except Exception as error:
            note = "\n".join(self.account(page, f"{name}-{number}") for number, page in enumerate(self.pages_open))
            if hasattr(error, "add_note"):
                error.add_note(note)
            else:
                print(note, file=sys.stderr)
            raise

    def account(self, page: Any, name: str) -> str:
        """A page in words, and in a picture beside them."""
        if page.is_closed():
            return ""
        lines = [f"--- {page.url}", *page.told[-30:]]
        try:
            FAILURES.mkdir(parents=True, exist_ok=True)
            picture = FAILURES / f"{type(self).__name__}-{name}.png"
            page.screenshot(path=picture, timeout=10_000)
            lines.append(f"picture: {picture}")
            text = page.locator("body").inner_text(timeout=10_000)
            lines += ["text:", re.sub(r"\s*\n\s*", " / ", text)[:1500]]
        except Exception as error:  # whatever is wrong with the page, the failure itself matters more
            lines.append(f"no picture: {error}")
        return "\n".join(lines)

    @classmethod
    def setUpClass(cls) -> None:
        reason = why_not()
        if reason:
            raise unittest.SkipTest(reason)

    def context(self, width: int = 1280, theme: str = "light", **more: Any) -> Any:
        """A browser context; what it logs as errors fails the test."""
        options = {"viewport": viewport(width), "color_scheme": theme}
        made = browser().new_context(**options, reduced_motion="reduce", **more)
        made.set_default_timeout(PATIENCE * 1000)
        self.addCleanup(made.close)
        return made

    def page(self, where: str = "", context: Any = None, **more: Any) -> Any:
        """An open page. `page.faults` collects console errors, `page.asked` every address it asked for.

        `page.pending` holds the requests that are not answered yet, and `page.told` everything it logged and every
        request that failed, for the account of a failure.
        """
        made = (context or self.context(**more)).new_page()
        self.pages_open.append(made)
        made.faults = []
        made.asked = []
        made.told = []
        made.pending = set()
        made.on("console", lambda message: message.type == "error" and made.faults.append(message.text))
        made.on("console", lambda message: made.told.append(f"{message.type}: {message.text}"))
        made.on("pageerror", lambda error: made.faults.append(str(error)))
        made.on("pageerror", lambda error: made.told.append(f"thrown: {error}"))
        made.on("requestfailed", lambda request: made.told.append(f"failed: {request.url} {request.failure}"))
        made.on("request", lambda request: made.asked.append((request.method, request.url, request.post_data_buffer)))
        # A page is never told that the script of its shared worker has arrived.
        made.on("request", lambda request: "/worker-" in request.url or made.pending.add(request))
        made.on("requestfinished", lambda request: made.pending.discard(request))
        made.on("requestfailed", lambda request: made.pending.discard(request))
        made.goto(f"{self.url}/ui/{where}")
        return made

    def live(self, page: Any) -> None:
        """Wait until the event stream is up."""
        page.wait_for_selector(".linkmark.s-ready")

    def settled(self, page: Any) -> None:
        """Wait until the page is live and nothing on it is being fetched."""
        self.live(page)
        page.locator("main :is(h1, h2)").first.wait_for()
        self.gone(page.locator("main .spinner"))
        until(lambda: page.evaluate(PAINTED) or not page.pending)

    def appearances(self, page: Any, *, widths: tuple[int, ...] = WIDTHS) -> Iterator[tuple[int, str]]:
        """Show the loaded page in each of the widths and both themes, and give these."""
        for width in widths:
            page.set_viewport_size(viewport(width))
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                page.evaluate(PAINTED)
                yield width, theme

    def turn(self, page: Any, where: str) -> None:
        """Show another page of the interface without loading the document again."""
        step = "url => { history.pushState(null, '', url); dispatchEvent(new PopStateEvent('popstate')); }"
        page.evaluate(step, f"{self.url}/ui/{where}")

    def accessible(self, page: Any) -> None:
        """Fail if axe finds something; without axe nothing is judged."""
        if AXE.exists():
            self.assertEqual(self.axe(page), [])

    def fits(self, page: Any) -> None:
        """Fail if the page scrolls sideways."""
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        self.assertLessEqual(over, 0, "the page scrolls sideways")

    def gone(self, locator: Any) -> None:
        """Wait until nothing on the page is like this."""
        until(lambda: locator.count() == 0)

    def axe(self, page: Any) -> list[str]:
        """What axe finds of serious or critical impact, and why."""
        if not page.evaluate("'axe' in window"):
            page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
            ".filter(v => ['serious', 'critical'].includes(v.impact))"
            ".map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)"
            " + ' ' + n.any.map(why => why.message).join(' ')).join(' | ')))"
        )
        return list(found)

    def stored(self, page: Any, text: str) -> None:
        """Wait until the browser has stored a finished conversation with this in its last message."""
        look = (
            "async (store, done, text) => (await done(store.getAll())).some(found =>"
            "{ const last = found.messages.at(-1); return last.stats?.output && last.text.includes(text); })"
        )
        until(lambda: self.in_store(page, look, text))

    def in_store(self, page: Any, act: str, value: Any = None) -> Any:
        """What the function `act` makes of the browser's stored conversations, which the page makes room for first.

        `act` gets the store, a function that awaits a request to it, and `value`. A promise that never settles would
        hang the test, so whatever fails in the browser fails here.
        """
        made = "indexedDB.databases().then(all => all.some(one => one.name === 'llamaswap'))"
        until(lambda: page.evaluate(made))
        return page.evaluate(
            "async value => {"
            "const done = ask => new Promise((resolve, reject) =>"
            "{ ask.onsuccess = () => resolve(ask.result); ask.onerror = () => reject(ask.error); });"
            "const db = await done(indexedDB.open('llamaswap'));"
            "try { const store = db.transaction('conversations', 'readwrite').objectStore('conversations');"
            f"return await ({act})(store, done, value); }} finally {{ db.close(); }} }}",
            value,
        )


class MockCase(BrowserCase):
    """Against the mock; each test has its own."""

    def setUp(self) -> None:
        self.mock: ThreadingHTTPServer = mock.serve()
        self.world = self.mock.RequestHandlerClass.world  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.mock.server_address[1]}"
        self.addCleanup(self.halt)

    def halt(self) -> None:
        """End the mock and every stream it feeds."""
        self.world.down = True
        self.mock.shutdown()
        self.mock.server_close()

    def busy(self, page: Any, seconds: float) -> float:
        """The share of a core that the page's main thread used for so long."""
        session = page.context.new_cdp_session(page)
        # The time it ran, not the time it waited for a core that another process used.
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def spent() -> float:
            metrics = session.send("Performance.getMetrics")["metrics"]
            return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

        before, began = spent(), time.monotonic()
        page.wait_for_timeout(seconds * 1000)
        return float((spent() - before) / (time.monotonic() - began))


class RealCase(BrowserCase):
    """Against the real server, one for the class."""

    server: ClassVar[RealServer]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.server = RealServer()
        cls.addClassCleanup(cls.server.stop)
        cls.server.start()
        cls.url = cls.server.url
