"""The proxy's side of the guardian process: its start, its replacement, and the lines that report children to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import Factory, define
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaswap.servers.guardian import CHILDREN, encode_stop
from llamaswap.servers.server_snapshot import Adopted, descriptors
from llamaswap.servers.spawn import ChildRecord, process_id

REPLACEMENTS = 5  # how often a killed guardian is replaced: more often it is killed on purpose

_log = Logger()
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from llamaswap.servers.guardian import main; main()"


def _line(record: ChildRecord) -> str:
    return f"+ {record.pid} {record.start} {record.mark} {encode_stop(record.stop_words, record.env)}"


class _GuardianPipe(ProcessProtocol):
    """The pipe to the guardian. `write` is os.write."""

    def __init__(self, write: Callable[[int, bytes], int], ended: Callable[[_GuardianPipe], None]) -> None:
        self._write = write
        self._ended = ended
        self._behind = False
        self.pid = 0

    def connectionMade(self) -> None:
        self.pid = process_id(self.transport)

    def send(self, line: str) -> None:
        """Send one line, at once: a proxy that is killed the next moment must not have it in a buffer."""
        transport, pipe, data = self.transport, self.pipe, line.encode() + b"\n"
        if transport is None:
            return
        if pipe is not None and not self._behind:
            try:
                data = data[self._write(pipe, data) :]
            except OSError:
                pass  # full, or the guardian has ended, which the transport reports
        if data:
            self._behind = True
            transport.writeToChild(0, data)

    @property
    def pipe(self) -> int | None:
        """This process's end of the pipe."""
        return None if self.transport is None else descriptors(self.transport).get(0)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.closeStdin()

    def processEnded(self, reason: Failure) -> None:
        self._ended(self)


@define(eq=False)
class GuardianClient:
    """Starts the guardian with the first child, tells it of each, and replaces it if it is killed."""

    processes: IReactorProcess
    environ: Mapping[str, str]
    adoption: Callable[..., Adopted] = Adopted
    write: Callable[[int, bytes], int] = os.write
    _pipe: _GuardianPipe | None = None
    _held: int | None = None
    _children: dict[int, ChildRecord] = Factory(dict)
    _replacements: int = 0

    @property
    def pid(self) -> int | None:
        """The guardian's process, while it runs."""
        return None if self._pipe is None else self._pipe.pid

    def handover(self) -> tuple[int, int] | None:
        """(its pid, this process's end of its pipe), for a new program in this process."""
        pipe = self._pipe
        if pipe is None or pipe.pipe is None:
            return None
        return pipe.pid, pipe.pipe

    def adopt(self, pid: int, pipe: int) -> None:
        """Continue with the guardian of the previous program of this process. OSError if it does not exist."""
        protocol = self._make_pipe()
        adopted = self.adoption(self.processes, pid, protocol, reading={}, writing={0: pipe})
        self._pipe = protocol
        adopted.watch()

    def hold(self, descriptor: int) -> None:
        """Have the guardian keep this descriptor open too, from now on: it is closed when no child is left."""
        self._held = descriptor
        if self._pipe is None:
            self._start()

    def started(self, record: ChildRecord) -> None:
        self._children[record.pid] = record
        if self._pipe is None:
            self._start()
        else:
            self._pipe.send(_line(record))

    def ended(self, record: ChildRecord) -> None:
        if self._children.pop(record.pid, None) is not None and self._pipe is not None:
            self._pipe.send(f"- {record.pid}")

    def close(self) -> None:
        """Close the pipe; a guardian without children ends at once."""
        pipe, self._pipe = self._pipe, None
        self._replacements = REPLACEMENTS
        if pipe is not None:
            pipe.close()

    def _make_pipe(self) -> _GuardianPipe:
        return _GuardianPipe(lambda pipe, data: self.write(pipe, data), self._guardian_ended)

    def _guardian_ended(self, pipe: _GuardianPipe) -> None:
        if self._pipe is not pipe:
            return
        self._pipe = None
        _log.warn("process guardian exited unexpectedly")
        if self._children and self._replacements < REPLACEMENTS:
            self._replacements += 1
            self._start()

    def _start(self) -> None:
        """The present children are in its environment: the proxy could be killed before it writes a first line."""
        pipe = self._make_pipe()
        python = sys.executable or "python3"
        lines = "".join(f"{_line(record)}\n" for record in self._children.values())
        try:
            self.processes.spawnProcess(
                pipe,
                python,
                [python, "-I", "-S", "-c", _PROGRAM],
                env={**self.environ, CHILDREN: lines},
                childFDs={0: "w"} if self._held is None else {0: "w", 3: self._held},
            )
        except OSError as error:
            _log.warn(
                "process guardian could not be started: {error}; servers would outlive a killed proxy", error=str(error)
            )
            return
        self._pipe = pipe
