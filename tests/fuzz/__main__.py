"""Fuzz what reads foreign bytes: `python -m tests.fuzz [--seconds N] [--jobs N] [TARGET ...]`.

Atheris (coverage-guided, https://pypi.org/project/atheris) does the guessing, each target in a process of its own,
N seconds each (60). What makes a target fail is kept in a file and said; the exit status is 1 then. Without atheris
nothing is fuzzed, and that is said. Targets: json, multipart, form, headers, front, answer, stream, config, state.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LONGEST = 20  # seconds one input may take; far more than any should


def fuzz(name: str, corpus: str, kept: str, seconds: int) -> None:
    """In a process of its own: this never returns."""
    import atheris

    with atheris.instrument_imports(include=["llamaswap"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    folder = Path(corpus)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed{number}").write_bytes(seed)
    words = folder.with_suffix(".words")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words), encoding="ascii")
    options = [f"-max_total_time={seconds}", f"-timeout={LONGEST}", "-max_len=2048", f"-artifact_prefix={kept}/{name}-"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", f"-dict={words}", corpus], target.run)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def main() -> int:
    """Run the targets, one after the other; how many failed decides the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads foreign bytes.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--kept", default=str(ROOT / "build" / "fuzz"), help="where failing inputs are kept")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    options = parser.parse_args()
    if options.one:
        fuzz(*options.one, options.kept, options.seconds)
    try:
        import atheris  # noqa: F401 # only to see that it is there
    except ImportError:
        print("skip: atheris is not installed (pip install atheris); the unit tests run the same on a few bytes")
        return 0
    from tests.fuzz.targets import TARGETS

    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    Path(options.kept).mkdir(parents=True, exist_ok=True)
    passed = failed = 0
    for name in options.targets or TARGETS:
        with tempfile.TemporaryDirectory() as corpus:
            (Path(corpus) / "corpus").mkdir()
            words = [sys.executable, "-m", "tests.fuzz", "--seconds", str(options.seconds), "--kept", options.kept]
            words += ["--one", name, f"{corpus}/corpus"]
            done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = done.stdout.decode("utf-8", "replace")
        ran = [line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line]
        if done.returncode:
            print(said[-6000:])
        print(f"{'FAIL' if done.returncode else 'ok  '} {name}: {ran[-1] if ran else '?'} inputs", flush=True)
        passed, failed = passed + (not done.returncode), failed + bool(done.returncode)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
