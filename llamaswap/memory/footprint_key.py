"""The key of a footprint: equal for servers that use the same memory, whatever ports or boards of one kind they get.

Files are part of it by size and time, not by content. Blocks for a moment: for a worker's thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from stat import S_ISDIR, S_ISREG

# Options whose values have no influence on the memory, and differ between two starts or contain a secret.
_UNRELATED = re.compile(r"-{1,2}(?:\w+-)*(?:port|host|listen|address|key|token|password)(?:-file)?", re.IGNORECASE)
# Options that name files a server writes: their sizes and times change while it runs.
_WRITTEN = re.compile(r"-{1,2}.*(?:log|save|cache|output|tmp|pid|sock).*", re.IGNORECASE)

_PREFIXES = ("LLAMA_ARG_", "GGML_", "OLLAMA_", "VLLM_", "SGLANG_", "TABBY_", "KOBOLD", "PYTORCH_", "HSA_OVERRIDE_")
_VISIBLE = frozenset(
    (
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "GGML_VK_VISIBLE_DEVICES"),
    )
)
_UNRELATED_NAME = re.compile(r"(?:^|_)(?:PORT|HOST|ORIGINS|KEY|TOKEN|DEBUG|LOG\w*)(?:_|$)")


def footprint_key(
    argv: Sequence[str],
    environ: Mapping[str, str],
    engine: str | None,
    boards: str,
    gpu_count: int | None = None,
) -> str:
    """The key of a server that is started by `argv` in `environ`.

    `engine` is the file of its program, `boards` describes the kind and number of the machine's boards. `gpu_count` is
    given if llamaswap chooses the GPUs: their number counts then, and not which ones they are.
    """
    chosen = gpu_count is not None
    parts: list[object] = [boards, gpu_count, _stamp(engine) if engine else None]
    parts += sorted(
        (name, value)
        for name, value in environ.items()
        if (name in _VISIBLE and not chosen) or (name.startswith(_PREFIXES) and not _is_unrelated(name))
    )
    for option, value in _values(argv):
        written = _WRITTEN.fullmatch(option) is not None
        parts.append((option, value, None if written or not value else _stamp(value)))
    return sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _is_unrelated(name: str) -> bool:
    return name in _VISIBLE or _UNRELATED_NAME.search(name) is not None


def _values(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The words of a command as (option, value), either of them may be empty; without those that do not matter."""
    option = ""
    for word in argv:
        if word.startswith("-") and not re.fullmatch(r"-\d[\d.]*", word):
            option, equals, value = word.partition("=")
            if not _UNRELATED.fullmatch(option):
                yield option, value
            if equals:
                option = ""
        else:
            if not _UNRELATED.fullmatch(option):
                yield option, word
            option = ""


def _stamp(path: str) -> tuple[int, int] | None:
    """(size, time) of a file; of a folder only if it is a model's, because others change while a server runs."""
    try:
        found = os.stat(path)
        if S_ISDIR(found.st_mode):
            found = os.stat(os.path.join(path, "config.json"))
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else None
