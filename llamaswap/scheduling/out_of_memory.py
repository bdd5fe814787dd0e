"""Recognises in the output of a server that it ran out of memory."""

from __future__ import annotations

import re

_SIGNS = re.compile(
    r"out of (device |host )?memory"
    r"|out_?of_?(device_?|host_?)?memory"
    r"|(cuda|hip)malloc\w* failed"
    r"|failed to (allocate|alloc|reserve|create context|fit)"
    r"|(unable|cannot|could not) (to )?allocate"
    r"|alloc(ation|ating)? .{0,40}failed"
    r"|insufficient (device )?memory|not enough (gpu |device |free )?memory"
    r"|bad_alloc|memoryerror|no available memory for the cache blocks",
    re.IGNORECASE,
)
_RETRIES = re.compile(r"retrying|falling back|will try", re.IGNORECASE)  # the server goes on with less
KILLED = (-9, 137)  # exit statuses of a process that the kernel has killed, most often for memory


def ran_out_of_memory(output: str, exit_status: int | None) -> bool:
    """Whether a server that exited so, with this as its last output, most likely ran out of memory."""
    if exit_status in KILLED:
        return True
    return any(_SIGNS.search(line) and not _RETRIES.search(line) for line in output.splitlines())
