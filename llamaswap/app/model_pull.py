"""Downloads models by `llamaswap pull` in a process of its own, so that the service stays as it is meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from llamaswap.hub_cache import hub_folder, repository
from llamaswap.web.errors import HttpError
from llamaswap.web.ollama_models import PulledFiles

OUTPUT_LIMIT = 1 << 20  # bytes of the command's output, and of a line of its progress
HUB_TIMEOUT = 5.0  # seconds in which Hugging Face answers
HUB_LIMIT = 8 << 20  # bytes of such an answer
ERROR_LENGTH = 2000  # characters of its last words


def hub_document(environ: Mapping[str, str], path: str) -> object:
    """A JSON document of Hugging Face, or of the server that HF_ENDPOINT names. Blocks for seconds; raises OSError or
    ValueError."""
    from http.client import HTTPException  # here, because these modules are rarely needed
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    token = environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = Request((environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/") + path, headers=headers)
    try:
        with urlopen(request, timeout=HUB_TIMEOUT) as response:
            return json.loads(response.read(HUB_LIMIT))
    except HTTPError:
        raise
    except URLError as error:
        reason = error.reason
        raise OSError((reason.strerror if isinstance(reason, OSError) else "") or str(reason)) from None
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


class PullProcess(ProcessProtocol):
    """One download. The command's progress is lines of JSON among its messages, its result (or error) the output."""

    def __init__(self, progress: Callable[[dict[str, object]], None]) -> None:
        self.ended: Deferred[PulledFiles] = Deferred(lambda _: self._cancel())
        self._progress = progress
        self._output = bytearray()
        self._messages = bytearray()

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[-OUTPUT_LIMIT:]

    def errReceived(self, data: bytes) -> None:
        self._messages = (self._messages + data)[-OUTPUT_LIMIT:]
        *lines, rest = bytes(self._messages).split(b"\n")
        self._messages = bytearray(rest)
        for line in lines:
            document = _object(line)
            if document is not None:
                self._progress(document)

    def processEnded(self, reason: Failure) -> None:
        if self.ended.called:
            return
        result = _object(bytes(self._output))
        files = result.get("files") if result is not None else None
        if getattr(reason.value, "exitCode", None) == 0 and result is not None and isinstance(files, list):
            name = str(result.get("repository"))
            names = [_in_snapshot(str(path)) for path in files]
            self.ended.callback(PulledFiles(name, names, [str(path) for path in files]))
        else:
            error = result.get("error") if result is not None else None
            message = str(error.get("message") or "")[:ERROR_LENGTH] if isinstance(error, dict) else ""
            self.ended.errback(HttpError(502, message or "the download ended without a reason"))

    def _cancel(self) -> None:
        process: IProcessTransport | None = self.transport
        try:
            if process is not None:
                process.signalProcess("TERM")
        except ProcessExitedAlready:
            pass


@define(eq=False)
class CommandPuller:
    """Downloads with the command, in the environment `environ`. The files go into Hugging Face's cache."""

    processes: IReactorProcess
    environ: Mapping[str, str]
    words: Sequence[str] = field(factory=lambda: (sys.executable, "-m", "llamaswap"))

    def pull(self, name: str, progress: Callable[[dict[str, object]], None]) -> Deferred[PulledFiles]:
        """See `ModelPuller`."""
        protocol = PullProcess(progress)
        words = [*self.words, "pull", "--progress", "--json", "--", name]
        try:
            self.processes.spawnProcess(protocol, words[0], words, env=dict(self.environ))
        except OSError as error:
            raise HttpError(500, f"the download cannot be started: {error}")
        return protocol.ended

    def remove(self, name: str, files: Sequence[str]) -> None:
        """See `ModelPuller`."""
        hub = hub_folder(Path(self.environ.get("HOME") or "/nonexistent"), self.environ)
        folder = repository(hub, name).resolve()
        for path in folder.glob("snapshots/*/**/*"):
            blob = path.resolve()
            # The names come from the configuration: nothing outside of the repository's folder is removed.
            if _in_snapshot(str(path)) in files and path.is_file() and folder in blob.parents:
                path.unlink()
                blob.unlink(missing_ok=True)


def _in_snapshot(path: str) -> str:
    """The name of a file within its snapshot in the cache."""
    return path.rpartition("/snapshots/")[2].partition("/")[2] or path


def _object(data: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
