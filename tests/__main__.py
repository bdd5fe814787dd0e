"""Everything that must hold, in one command: `python -m tests [STEP ...]`.

Steps: lint, types, unit, live, hosts, soak, docs, packaging, ui. Without arguments all of them run. The last line reads
`N passed, N failed, N skipped`; a step that is no test suite (lint, types, packaging checks) counts as one.
The exit status is 0 when nothing failed.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests"
LONGEST = 600  # seconds for a command of a step: it hangs if it takes longer


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def check(self, name, ok, detail=""):
        print(f"{'ok  ' if ok else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)
        if ok:
            self.passed += 1
        else:
            self.failed += 1

    def skip(self, name, why):
        print(f"skip {name}: {why}", flush=True)
        self.skipped += 1


def run(words):
    """(its status, what it said) of a command that is ended when it takes too long: it hangs."""
    words = [str(word) for word in words]
    print("$ " + " ".join(words), flush=True)
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            child.wait(LONGEST)
        except subprocess.TimeoutExpired:
            print(f"FAIL it did not end within {LONGEST} s", flush=True)
        finally:
            end(child)
        output.seek(0)
        return child.returncode, output.read().decode("utf-8", "replace")


def end(child):
    """A command that still runs ends with its group; the first signal lets Python say where it was, and clean up."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def judge(tally, name, words):
    """A command that says nothing of interest unless it fails."""
    status, text = run(words)
    tally.check(name, status == 0, text[-20000:] if status else "")


def module_present(name):
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, cwd=ROOT).returncode == 0


def lint(tally):
    if not module_present("ruff"):
        tally.skip("lint", "ruff is not installed (extra: dev)")
        return
    judge(tally, "ruff check", [sys.executable, "-m", "ruff", "check", "."])
    judge(tally, "ruff format", [sys.executable, "-m", "ruff", "format", "--check", "."])


def types(tally):
    if not module_present("mypy"):
        tally.skip("types", "mypy is not installed (extra: dev)")
        return
    judge(tally, "mypy --strict", [sys.executable, "-m", "mypy", "llamaswap"])


def trial(tally, name, targets, jobs=0):
    """Run trial, count what it says in its closing line."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "twisted.trial", f"--temp-directory={scratch}/trial"]
        words += [f"-j{jobs}"] if jobs else []
        words += ["--reporter=bwverbose" if not jobs else "--reporter=text", *targets]
        status, text = run(words)
    closing = re.findall(r"^(PASSED|FAILED)(?: \((.*)\))?$", text, re.MULTILINE)
    counts = dict(re.findall(r"(\w+)=(\d+)", closing[-1][1])) if closing else {}
    good = int(counts.get("successes", 0)) + int(counts.get("expectedFailures", 0))
    bad = int(counts.get("failures", 0)) + int(counts.get("errors", 0)) + int(counts.get("unexpectedSuccesses", 0))
    tally.passed += good
    tally.skipped += int(counts.get("skips", 0))
    if status != 0 or not closing:
        bad = max(bad, 1)
        print(text[-20000:])
    else:
        print("\n".join(line for line in text.splitlines() if "SKIPPED" in line or line.startswith("  "))[:3000])
    tally.failed += bad
    print(f"{name}: {good} passed, {bad} failed", flush=True)


def unit(tally):
    apart = {"live", "hosts", "ui", "soak"}
    targets = sorted(
        f"tests.{path.name.removesuffix('.py')}"
        for path in HERE.iterdir()
        if (path.name.startswith("test_") and path.suffix == ".py")
        or (path.is_dir() and (path / "__init__.py").exists() and path.name not in apart)
    )
    trial(tally, "unit", targets, jobs=2)


def live(tally):
    # Most of it waits for servers to come and go: three at a time share the cores well.
    trial(tally, "live", ["tests.live"], jobs=3)


def hosts(tally):
    """Three nodes of Ray on this machine; the last test ends every process of Ray that this user runs."""
    if not module_present("ray"):
        tally.skip("hosts", "ray is not installed (extra: hosts)")
        return
    trial(tally, "hosts", ["tests.hosts"])


def docs(tally):
    """The site is built, and a warning is an error: a page without a link to it, a reference without a target."""
    if not module_present("sphinx"):
        tally.skip("docs", "sphinx is not installed (extra: dev)")
        return
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", scratch]
        judge(tally, "the documentation is built", [*words, "-d", f"{scratch}/.doctrees"])


def packaging(tally):
    """The wheel and an editable install each make `twist llamaswap --help` work; the wheel is complete."""
    if not module_present("build"):
        tally.skip("packaging", "build is not installed (extra: dev)")
        return
    with tempfile.TemporaryDirectory() as scratch:
        _, text = run([sys.executable, "-m", "build", "--outdir", scratch, "."])
        wheels, sdists = list(Path(scratch).glob("*.whl")), list(Path(scratch).glob("*.tar.gz"))
        tally.check("sdist and wheel are built", bool(wheels and sdists), "" if wheels else text[-2000:])
        if not wheels:
            return
        import zipfile

        names = zipfile.ZipFile(wheels[0]).namelist()
        tally.check("the wheel owns no twisted/__init__.py", "twisted/__init__.py" not in names)
        data = ("py.typed", "demo/demo.yaml", "cli/units/system.service")
        for wanted in ("twisted/plugins/llamaswap_plugin.py", *(f"llamaswap/{name}" for name in data)):
            tally.check(f"the wheel holds {wanted}", wanted in names)
        for wanted in ("example.yaml", "schema.json", "llamaswap.service"):
            held = any(name.endswith(f"/share/llamaswap/{wanted}") for name in names)
            tally.check(f"the wheel holds share/llamaswap/{wanted}", held)
        tally.check("the wheel holds the licence", any(name.endswith("LICENSE") for name in names))
        tally.check("the wheel holds no tests", not any(name.startswith("tests") for name in names))
        for kind, what in (("wheel", [wheels[0]]), ("editable", ["-e", ROOT])):
            home = Path(scratch) / kind
            venv.create(home, with_pip=True)
            run([home / "bin" / "pip", "install", "-q", *what])
            for words in (["twist", "llamaswap", "--help"], ["llamaswap", "-version"]):
                done = subprocess.run(
                    [home / "bin" / words[0], *words[1:]], cwd=scratch, capture_output=True, text=True, timeout=120
                )
                ok = done.returncode == 0 and ("--config" in done.stdout or "version" in done.stdout)
                tally.check(f"{kind} install: {' '.join(words)}", ok, "" if ok else (done.stdout + done.stderr)[-800:])


def soak(tally):
    """The short version; an hour of it is `python -m tests.soak`."""
    program(tally, "tests.soak", "--seconds", "120")


def ui(tally):
    if (HERE / "ui" / "__main__.py").exists():
        program(tally, "tests.ui", "-j2")


def program(tally, *words):
    """Run a module that counts for itself."""
    status, text = run([sys.executable, "-m", *words])
    if status == 0 and not re.search(r"^\d+ passed", text, re.MULTILINE):
        tally.skip(words[0], text.strip()[-300:])
        return
    print(text[-6000 if status == 0 else -20000 :])
    count(tally, status, text)


def count(tally, status, text):
    """Add what a program says that it passed, failed and skipped; one that says nothing, or ends badly, has failed."""
    counts = re.findall(r"^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$", text, re.MULTILINE)
    good, bad, left = (int(number or 0) for number in counts[-1]) if counts else (0, 1, 0)
    if status != 0:
        bad = max(bad, 1)
    tally.passed, tally.failed, tally.skipped = tally.passed + good, tally.failed + bad, tally.skipped + left


STEPS = {
    "lint": lint,
    "types": types,
    "unit": unit,
    "live": live,
    "hosts": hosts,
    "soak": soak,
    "docs": docs,
    "packaging": packaging,
    "ui": ui,
}
# The soak runs for a fixed time and promises no speed; these steps take one core meanwhile.
BESIDE = {"soak": ("docs", "packaging")}


def step(tally, name):
    began = time.monotonic()
    print(f"== {name}", flush=True)
    STEPS[name](tally)
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)


def together(tally, name, others):
    """The step `name` in a process of its own, and the others here meanwhile."""
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests", name], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            for other in others:
                step(tally, other)
            child.wait()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # so that it ends what it started
                child.wait()
        output.seek(0)
        *told, last = output.read().splitlines() or [""]
    print("\n".join(told), flush=True)
    count(tally, child.returncode, last)


def main(names):
    if {"-h", "--help"}.intersection(names):
        print(__doc__.strip())
        return 0
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        print(f"no such step: {', '.join(unknown)}; there are: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    tally = Tally()
    beside = {} if names else BESIDE
    for name in names or STEPS:
        if name in beside:
            together(tally, name, beside[name])
        elif not any(name in others for others in beside.values()):
            step(tally, name)
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
