"""Service definitions: a systemd unit and its socket (for the system, for one user), a launchd property list.

Only texts; `service` writes them. The files in config/ are what this makes with the usual paths.
"""

from __future__ import annotations

import plistlib
import shlex
from pathlib import PurePath

NAME = "llamaswap"
LABEL = "io.github.llamaswap"
PROGRAM = "/usr/local/bin/llamaswap"
CONFIG = "/etc/llamaswap/config.yaml"
LISTEN = "127.0.0.1:8080"

HARDENING = """\
# -- what it may not do: `systemd-analyze security llamaswap` tells the score ------------------------------
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
# Models below /home are readable; "yes" hides them.
ProtectHome=read-only
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
KeyringMode=private
UMask=0077
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
# GPUs and nothing else. Not MemoryDenyWriteExecute: CUDA and PyTorch translate code while they run.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
DeviceAllow=char-kfd rw
DeviceAllow=char-accel rw
"""


def service(program: str = PROGRAM, config: str = CONFIG, *, user: bool = False, path: str = "") -> str:
    """The unit. `program` may be several words (`python -m llamaswap`); it listens on the socket unit's socket."""
    lines = [
        "# llamaswap under systemd. It listens where llamaswap.socket says, so no request is lost while it restarts.",
        "[Unit]",
        "Description=llamaswap: one endpoint in front of every local inference server",
        "Requires=llamaswap.socket",
        "After=llamaswap.socket" + ("" if user else " network-online.target"),
    ]
    if not user:
        lines.append("Wants=network-online.target")
    lines += [
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_command(program)} -config {_word(config)}",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "# Fed only while requests can move; see /readyz.",
        "WatchdogSec=30",
        "Restart=on-failure",
        "RestartSec=2",
        "# It drains requests (drainTimeout, 30 seconds) and then stops the model servers, within 12 seconds more.",
        "# What is left then is killed.",
        "KillMode=mixed",
        "TimeoutStopSec=60",
        "# Big models are mapped and locked; many clients are many sockets.",
        "LimitMEMLOCK=infinity",
        "LimitNOFILE=65536",
    ]
    if path:
        lines.append(f"Environment=PATH={path}")
    if user:
        lines += ["NoNewPrivileges=yes", "", "[Install]", "WantedBy=default.target"]
        return "\n".join(lines) + "\n"
    lines += [
        "# A user of its own, made when it starts. To use models of a real user, set User= and DynamicUser=no.",
        "DynamicUser=yes",
        "# Where the GPU's device files belong to groups, add them: SupplementaryGroups=video render",
        "StateDirectory=llamaswap",
        "CacheDirectory=llamaswap",
        "ConfigurationDirectory=llamaswap",
        "Environment=HOME=%C/llamaswap",
        "",
        HARDENING,
        "[Install]",
        "WantedBy=multi-user.target",
        "Also=llamaswap.socket",
    ]
    return "\n".join(lines) + "\n"


def socket(listen: str = LISTEN) -> str:
    """The socket unit: host:port, :port (all addresses) or a path."""
    address = listen.removeprefix("unix:")
    if address.startswith(":"):
        address = address[1:]
    return "\n".join(
        [
            "# Where llamaswap listens. 8080 alone is every address of this machine: set apiKeys then.",
            "[Unit]",
            "Description=llamaswap's socket",
            "",
            "[Socket]",
            f"ListenStream={address}",
            "Backlog=1024",
            "",
            "[Install]",
            "WantedBy=sockets.target",
            "",
        ]
    )


def before_sleep(program: str = PROGRAM, listen: str = LISTEN) -> str:
    """The unit that unloads all models before the machine sleeps: GPU memory does not survive every suspend."""
    path = listen.removeprefix("unix:")
    host = f"localhost{listen}" if listen.startswith(":") else listen
    url = f"unix:{path}" if path.startswith("/") else f"http://{host}"
    return "\n".join(
        [
            "# Unloads all models before the machine sleeps; they come back with the next request.",
            "[Unit]",
            "Description=Unload llamaswap's models before sleep",
            "Before=sleep.target",
            "",
            "[Service]",
            "Type=oneshot",
            f"ExecStart={_command(program)} unload --url {_word(url)}",
            "# Where apiKeys is set: LLAMASWAP_API_KEY=...",
            "EnvironmentFile=-/etc/llamaswap/environment",
            "TimeoutStartSec=30",
            "",
            "[Install]",
            "WantedBy=sleep.target",
            "",
        ]
    )


def launchd(program: str, config: str, listen: str, logs: str, path: str) -> str:
    """The property list of a launch agent (or daemon): started at login (or boot), again when it ends badly."""
    document = {
        "Label": LABEL,
        "ProgramArguments": [*shlex.split(program), "-config", config, "-listen", listen],
        "EnvironmentVariables": {"PATH": path},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ExitTimeOut": 60,
        "ProcessType": "Interactive",
        "StandardOutPath": str(PurePath(logs) / "llamaswap.log"),
        "StandardErrorPath": str(PurePath(logs) / "llamaswap.log"),
    }
    return plistlib.dumps(document, sort_keys=False).decode()


def _command(program: str) -> str:
    return " ".join(_word(word) for word in shlex.split(program))


def _word(word: str) -> str:
    """A word as a unit file wants it."""
    escaped = word.replace("%", "%%").replace("$", "$$")
    return escaped if word and not any(char in word for char in " \t\"'\\;") else '"' + _backslashed(escaped) + '"'


def _backslashed(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
