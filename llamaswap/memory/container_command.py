"""The command that runs in a container, as if it ran on the host: its paths, its environment and the GPUs it sees."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from llamaswap.memory.containers import ENGINES

# Flags of `run` without a value; short ones may be joined, as in -it. All others take the next word.
_SWITCHES = {
    *("--detach", "--interactive", "--tty", "--rm", "--rmi", "--init", "--privileged", "--read-only", "--replace"),
    *("--publish-all", "--quiet", "--sig-proxy", "--no-healthcheck", "--oom-kill-disable", "--env-host", "--no-hosts"),
    *("--no-hostname", "--http-proxy", "--tls-verify"),
}
_SHORT_SWITCHES = re.compile(r"-[ditPq]+")
_GPU_FLAGS = ("--gpus", "--device", "--runtime", "--privileged")
_GPU_NUMBERS = re.compile(r"(?:\bdevice|nvidia\.com/gpu|amd\.com/gpu)=(\d+(?:,\d+)*)")


def on_host(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], Mapping[str, str]]:
    """The words from the image on, with the host's paths, and the environment; other commands stay as they are.

    A container that gets no device uses none.
    """
    words = list(argv)
    if not words or os.path.basename(words[0]) not in ENGINES or "run" not in words:
        return words, environment
    at = words.index("run") + 1
    given: list[tuple[str, str]] = []
    while at < len(words) and words[at].startswith("-"):
        flag, equals, value = words[at].partition("=")
        at += 1
        if not equals and flag not in _SWITCHES and not _SHORT_SWITCHES.fullmatch(flag):
            value = words[at] if at < len(words) else ""
            at += 1
        given.append((flag, value))
    mounts = [_mount(flag, value) for flag, value in given]
    paths = dict(filter(None, mounts))
    variables = dict(environment)
    for flag, value in given:
        if flag in ("-e", "--env") and "=" in value:
            name, _, variables[name] = value.partition("=")
    devices = [value for flag, value in given if flag in _GPU_FLAGS]
    numbers = [number for value in devices for number in _GPU_NUMBERS.findall(value)]
    if numbers or not devices:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)
    return [_outside(word, paths) for word in words[at:]], variables


def _mount(flag: str, value: str) -> tuple[str, str] | None:
    """(path in the container, path on the host) of a folder or file that is mounted."""
    if flag in ("-v", "--volume"):
        outside, _, inside = value.partition(":")
        return inside.partition(":")[0].rstrip("/"), outside
    if flag == "--mount":
        fields = dict(field.split("=", 1) for field in value.split(",") if "=" in field)
        outside = fields.get("source") or fields.get("src") or ""
        inside = fields.get("target") or fields.get("destination") or fields.get("dst") or ""
        return inside.rstrip("/"), outside
    return None


def _outside(word: str, paths: Mapping[str, str]) -> str:
    """A word of the command with its path on the host, also in --flag=PATH."""
    flag, equals, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
    for inside in sorted(paths, key=len, reverse=True):
        if inside and (path == inside or path.startswith(inside + "/")):
            return flag + equals + paths[inside] + path[len(inside) :]
    return word
