"""The weights of the model that comes next, brought into the page cache while the one before it still stops.

Reading them is most of a load from a cold disk, and a swap that waits for a drain or a stop has that time to spare.
It is a hint to the kernel, given piece by piece on a thread: no more than fits into memory nobody uses, and none
for files that are small. Knows a command's words and files; must not know who decides about swaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field

LARGE = 64 * 1024 * 1024  # bytes of a file worth the trouble; smaller ones are read in a moment
PIECE = 1024 * 1024  # the kernel takes one hint for no more than about this much
KEPT_FREE = 2 * 1024 * 1024 * 1024  # bytes of memory left alone: the server needs some of its own
AGAIN = 30.0  # seconds before the same model's files are looked at once more
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
                    if named and one.is_file() and one.stat().st_size >= LARGE:
                        found[one] = None
            except (OSError, ValueError):
                continue  # a word that is no path, or one we may not look at
    return list(found)


def _parts(path: Path) -> list[Path]:
    """All parts of a model in several files, the first of which is named."""
    part = _PART.search(path.name)
    if part is None:
        return [path]
    count = int(part.group(2))
    start, end = path.name[: part.start()], path.name[part.end() :]
    return [path.with_name(f"{start}-{number:05d}-of-{count:05d}{end}") for number in range(1, count + 1)]


def available() -> int:
    """Bytes of memory that the kernel could give without writing anything out; 0 where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def advise(files: Sequence[Path], room: int, wanted: Callable[[], bool]) -> int:
    """Hint at the files, up to `room` bytes of them, as long as `wanted`; returns how many bytes were hinted at."""
    told = 0
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            size = os.fstat(descriptor).st_size
            for start in range(0, size, PIECE):
                length = min(PIECE, size - start)
                if told + length > room or not wanted():
                    return told
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
                told += length
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return told


@define(eq=False)
class ReadAhead:
    """Begins and ends reading ahead. `run` does work on a thread, `words(model)` is its command, `seconds` a clock."""

    _run: Callable[[Callable[[], object]], object]
    _words: Callable[[str], Sequence[str]]
    _seconds: Callable[[], float]
    _available: Callable[[], int] = available
    _advise: Callable[[Sequence[Path], int, Callable[[], bool]], int] = advise
    _model: str | None = field(default=None, init=False)
    _at: dict[str, float] = field(factory=dict, init=False)

    def begin(self, model: str) -> None:
        """The model will be loaded as soon as others have gone."""
        now = self._seconds()
        if now - self._at.get(model, -AGAIN) < AGAIN or not hasattr(os, "posix_fadvise"):
            return
        self._at[model] = now
        self._model = model
        words = self._words(model)
        self._run(lambda: self._work(model, words))

    def end(self, model: str) -> None:
        """Its server reads for itself now, or nobody wants it any more."""
        if self._model == model:
            self._model = None

    def _work(self, model: str, words: Sequence[str]) -> None:
        """On the thread."""
        files = weights(words)
        room = self._available() - KEPT_FREE
        if files and room > 0:
            self._advise(files, room, lambda: self._model == model)
