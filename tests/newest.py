"""The suite against the newest release of every dependency: `python -m tests.newest [--write] [STEP ...]`.

Builds a virtualenv without the constraints, runs the steps (lint, types, unit and live if none is named) in it, and
lists each package whose version differs from constraints.txt. `--write` puts the versions of a run that passed into
constraints.txt. The last line is that of `python -m tests`; the exit status is its exit status.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
STEPS = ("lint", "types", "unit", "live")
OURS = {"llamaswap", "pip", "setuptools", "wheel"}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^;\s]+)(.*)$")


def normalised(name):
    """A distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text):
    """{normalised name: version} of a constraints file's text."""
    found = (PIN.match(line) for line in text.splitlines())
    return {normalised(match[1]): match[2] for match in found if match}


def differences(text, installed):
    """One line for each package of `installed` {name: version} that `text` pins otherwise or not at all."""
    before = pinned(text)
    return [
        f"{name}: {before.get(normalised(name), 'not pinned')} -> {version}"
        for name, version in sorted(installed.items())
        if before.get(normalised(name)) != version
    ]


def rewritten(text, installed):
    """The constraints with the versions of `installed`; comments and environment markers stay."""
    now = {normalised(name): (name, version) for name, version in installed.items()}
    lines, seen = [], set()
    for line in text.splitlines():
        match = PIN.match(line)
        if match and normalised(match[1]) in now:
            seen.add(normalised(match[1]))
            line = f"{match[1]}=={now[normalised(match[1])][1]}{match[3]}"
        lines.append(line)
    lines += [f"{name}=={version}" for key, (name, version) in sorted(now.items()) if key not in seen]
    return "\n".join(lines) + "\n"


def versions(python):
    """{name: version} of what is installed beside `python`, without the project and the installers themselves."""
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {row["name"]: row["version"] for row in json.loads(done.stdout) if normalised(row["name"]) not in OURS}


def main(words):
    write, steps = "--write" in words, [word for word in words if word != "--write"]
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        installing = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ".[dev,live]"]
        if subprocess.run(installing, cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
            print("the newest releases cannot be installed together; pip says why above")
            return 1
        installed = versions(python)
        status = subprocess.run(
            [python, "-m", "tests", *(steps or STEPS)], cwd=ROOT, stdin=subprocess.DEVNULL
        ).returncode
    text = CONSTRAINTS.read_text(encoding="utf-8")
    changed = differences(text, installed)
    print("passed with" if status == 0 else "FAILED with", "these versions in place of the constraints:", flush=True)
    print("\n".join(f"  {line}" for line in changed) or "  (none differs)", flush=True)
    if write and status == 0:
        CONSTRAINTS.write_text(rewritten(text, installed), encoding="utf-8")
        print("constraints.txt is up to date")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
