"""The program that every child starts as: it leads a session, ends with its parent, then becomes the command.

It runs as ``python -I -S sessionleader.py PARENT_PID`` and imports nothing of this package. It makes a session (and so
a process group), asks the kernel for SIGTERM when the parent dies, waits on stdin for one instruction, and replaces
itself by the command in it: the pid stays the same, and no process remains between.

The instruction comes by pipe, so a leader can be started ahead of its need, and a model's load does not include an
interpreter's start (12 ms). And the model's environment (LD_LIBRARY_PATH, say) does not touch this interpreter.

The instruction: its length in decimal, a newline, then fields each ended by NUL: the file to execute, the number
of arguments, the arguments (the first is the command's own name), then KEY=VALUE each.
"""

from __future__ import annotations

import os
import sys

CANNOT_RUN = "cannot run "  # how the one line before an exit with 127 begins


def instruct(executable: bytes, argv: list[bytes], environ: list[bytes]) -> bytes:
    """The instruction as it goes through the pipe. ValueError if a field contains a NUL."""
    fields = [executable, b"%d" % len(argv), *argv, *environ]
    if any(b"\0" in field for field in fields):
        raise ValueError("a NUL in the command or its environment")
    payload = b"".join(field + b"\0" for field in fields)
    return b"%d\n" % len(payload) + payload


def follow(payload: bytes) -> tuple[bytes, list[bytes], dict[bytes, bytes]]:
    """Take an instruction (without its length) apart again. Of keys given twice the later one counts."""
    fields = payload.split(b"\0")[:-1]
    count = int(fields[1])
    environ: dict[bytes, bytes] = {}
    for pair in fields[2 + count :]:
        key, _, value = pair.partition(b"=")
        environ[key] = value
    return fields[0], fields[2 : 2 + count], environ


def _die_with_parent(parent: int) -> None:
    """Ask for SIGTERM, not SIGKILL: a container's client has to stop its container."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
    except (ImportError, OSError, AttributeError):
        return  # a libc without it: the guardian alone ends the command
    if os.getppid() != parent:
        os._exit(0)  # it died before the kernel was asked


def _read_instruction() -> bytes:
    """Everything up to the announced length. The end of the input means that this leader is not needed."""
    data = b""
    while b"\n" not in data:
        piece = os.read(0, 65536)
        if not piece:
            os._exit(0)
        data += piece
    length, _, payload = data.partition(b"\n")
    pieces = [payload]
    missing = int(length) - len(payload)
    while missing > 0:
        piece = os.read(0, 65536)
        if not piece:
            os._exit(0)
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _restore_signals() -> None:
    """Restore SIGPIPE and SIGXFSZ, which the interpreter ignores: the command must not inherit that.

    `_signal` is the C half of `signal`; the Python half takes 5 ms to import for its enums.
    """
    try:
        import _signal as signals  # type: ignore[import-not-found]  # CPython's own, without stubs
    except ImportError:
        import signal as signals
    for name in ("SIGPIPE", "SIGXFSZ"):
        number = getattr(signals, name, None)
        if number is not None:
            signals.signal(number, signals.SIG_DFL)


def main() -> None:
    """Never returns: becomes the command, or exits with 127 after one line that says why."""
    os.dup2(1, 2)
    os.setsid()
    _die_with_parent(int(sys.argv[1]))
    executable, argv, environ = follow(_read_instruction())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if nothing > 2:
        os.close(nothing)
    _restore_signals()
    try:
        os.execve(executable, argv, environ)
    except OSError as error:
        os.write(2, f"{CANNOT_RUN}{os.fsdecode(executable)}: {error.strerror}\n".encode())
    os._exit(127)


if __name__ == "__main__":
    main()
