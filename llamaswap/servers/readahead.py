"""Reads the weights of the next model into the page cache while the model before it still stops.

Reading them is most of a load from a cold disk, and a swap that waits for a drain or a stop has the time. It is a hint
to the kernel, given in pieces on a thread: no more than fits into free memory, and none for small files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field

from llamaswap.kernel_files import machine_memory

LARGE_FILE = 64 * 1024 * 1024  # bytes; smaller files are read in a moment
PIECE = 1024 * 1024  # bytes per hint: the kernel takes about this much
KEPT_FREE = 2 * 1024 * 1024 * 1024  # bytes of memory left for the server itself
REPEAT_AFTER = 30.0  # seconds before the same model's files are read again
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.\w+$)")
_WEIGHTS = (".gguf", ".safetensors", ".bin", ".ggml", ".pt", ".pth", ".onnx")


def weights(words: Sequence[str]) -> list[Path]:
    """The large files that a command names: as an argument, in `--key=value`, as a folder, or as a part of several."""
    found: dict[Path, None] = {}
    for word in words[1:]:
        for text in (word, word.partition("=")[2]):
            if not text or text.startswith("-"):
                continue
            path = Path(text).expanduser()
            try:
                candidates = sorted(path.iterdir()) if path.is_dir() else _parts(path)
                for one in candidates:
                    named = one.suffix.lower() in _WEIGHTS or one == path
                    if named and one.is_file() and one.stat().st_size >= LARGE_FILE:
                        found[one] = None
            except (OSError, ValueError):
                continue  # the word is not a path, or not a readable one
    return list(found)


def _parts(path: Path) -> list[Path]:
    """All parts of a model in several files, of which the command names the first."""
    part = _PART.search(path.name)
    if part is None:
        return [path]
    count = int(part.group(2))
    start, end = path.name[: part.start()], path.name[part.end() :]
    return [path.with_name(f"{start}-{number:05d}-of-{count:05d}{end}") for number in range(1, count + 1)]


def advise(files: Sequence[Path], room: int, wanted: Callable[[], bool]) -> int:
    """Hint at the files, up to `room` bytes of them, while `wanted`; returns how many bytes were hinted at."""
    hinted = 0
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            size = os.fstat(descriptor).st_size
            for start in range(0, size, PIECE):
                length = min(PIECE, size - start)
                if hinted + length > room or not wanted():
                    return hinted
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
                hinted += length
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return hinted


@define(eq=False)
class ReadAhead:
    """Begins and ends reading. `run` does work on a thread, `words(model)` is its command, `seconds` is a clock."""

    _run: Callable[[Callable[[], object]], object]
    _words: Callable[[str], Sequence[str]]
    _seconds: Callable[[], float]
    _memory: Callable[[], tuple[int, int]] = machine_memory
    _advise: Callable[[Sequence[Path], int, Callable[[], bool]], int] = advise
    _model: str | None = field(default=None, init=False)
    _read_at: dict[str, float] = field(factory=dict, init=False)

    def begin(self, model: str) -> None:
        """The model will be loaded when others have stopped."""
        now = self._seconds()
        if now - self._read_at.get(model, -REPEAT_AFTER) < REPEAT_AFTER or not hasattr(os, "posix_fadvise"):
            return
        self._read_at[model] = now
        self._model = model
        words = self._words(model)
        self._run(lambda: self._read(model, words))

    def end(self, model: str) -> None:
        """The model's server reads its files itself now, or the model is not wanted any more."""
        if self._model == model:
            self._model = None

    def _read(self, model: str, words: Sequence[str]) -> None:
        """Read the files. Runs on the thread."""
        files = weights(words)
        room = self._memory()[1] - KEPT_FREE
        if files and room > 0:
            self._advise(files, room, lambda: self._model == model)
