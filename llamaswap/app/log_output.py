"""Where log lines go: standard output, the in-memory logs that the API shows, and log files."""

from __future__ import annotations

import os
import sys
import time

from twisted.logger import LogEvent, Logger, formatEvent

from llamaswap.app.settings import IServiceReactor
from llamaswap.config import Config
from llamaswap.observe.batch_writer import StdoutWriter
from llamaswap.observe.log_format import LogFormatter
from llamaswap.observe.logfiles import LogFileLimits, LogFiles
from llamaswap.observe.logs import LogRegistry

FLUSH_TIMEOUT = 1.0  # seconds that the last lines may take at the end of the process

log = Logger("llamaswap.app.service")


class LogParts:
    """The parts that write logs."""

    def __init__(self, reactor: IServiceReactor, config: Config) -> None:
        self.stdout = write_stdout()
        self.files = LogFiles(
            log_file_limits(config), lambda problem: reactor.callFromThread(log.error, "{problem}", problem=problem)
        )
        self.registry = LogRegistry(to_stdout=config.log_to_stdout, stdout=self.stdout, to_file=self.files.write)
        self.formatter = LogFormatter(self.registry.proxy.write, reactor, reactor, time.time)
        self.formatter.retune(config.log_level, config.log_time_format)

    def observe(self, event: LogEvent) -> None:
        """Write one event of the process as lines of the proxy log: ours, and the errors of the libraries below us (an
        unhandled failure, printed text)."""
        self.formatter(event)
        namespace = event.get("log_namespace") or ""
        level = event.get("log_level")
        if namespace.startswith("llamaswap") or level is None or level.name not in ("error", "critical"):
            return
        failure = event.get("log_failure")
        text = formatEvent(event) or ""
        if failure is not None:
            text = f"{text}\n{failure.getTraceback()}".strip()
        self.formatter.line("error", f"{namespace}: {text}")

    def apply(self, config: Config) -> None:
        """Use the log settings of a new configuration."""
        self.formatter.retune(config.log_level, config.log_time_format)
        self.registry.retain(config.models)
        self.files.retune(log_file_limits(config))

    @property
    def idle(self) -> bool:
        """Whether everything was written."""
        return self.stdout.idle and self.files.idle

    def close(self) -> None:
        """Write the last lines."""
        self.files.close(FLUSH_TIMEOUT)
        self.stdout.close(FLUSH_TIMEOUT)


def write_stdout() -> StdoutWriter:
    """A writer on the real standard output: `twist` replaces sys.stdout by its log."""
    stream = sys.__stdout__.buffer if sys.__stdout__ is not None else open(os.devnull, "wb")  # noqa: SIM115

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return StdoutWriter(write)


def log_file_limits(config: Config) -> LogFileLimits | None:
    """The folder and sizes of the log files; None if no folder is configured."""
    files = config.log_files
    return LogFileLimits(files.folder, files.size * 1024 * 1024, files.keep) if files.folder else None
