"""Service definitions: systemd units (for the system, for one user) from the templates in `units/`, and a launchd
property list. Only texts; `service` writes them. The files in config/ are these with the default paths.
"""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path, PurePath

NAME = "llamaswap"
LABEL = "io.github.llamaswap"
PROGRAM = "/usr/local/bin/llamaswap"
CONFIG = "/etc/llamaswap/config.yaml"
LISTEN = "127.0.0.1:8080"


def service(program: str = PROGRAM, config: str = CONFIG, *, user: bool = False, path: str = "") -> str:
    """The unit; it listens on the socket of the socket unit. `program` may be several words (`python -m llamaswap`),
    `path` is the PATH of a user's service."""
    name = "user.service" if user else "system.service"
    return _filled(name, command=_command(program), config=_word(config), path=path)


def socket(listen: str = LISTEN) -> str:
    """The socket unit: host:port, :port (all addresses) or a path."""
    return _filled("llamaswap.socket", address=listen.removeprefix("unix:").removeprefix(":"))


def before_sleep(program: str = PROGRAM, listen: str = LISTEN) -> str:
    """The unit that unloads all models before the machine sleeps."""
    path = listen.removeprefix("unix:")
    host = f"localhost{listen}" if listen.startswith(":") else listen
    url = f"unix:{path}" if path.startswith("/") else f"http://{host}"
    return _filled("before-sleep.service", command=_command(program), url=_word(url))


def launchd(program: str, config: str, listen: str, logs: str, path: str) -> str:
    """The property list of a launch agent (or daemon): started at login (or boot), restarted if it fails."""
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


def _filled(template: str, **values: str) -> str:
    """A template with its {names} replaced; not by string.Template, because units contain dollar signs."""
    text = Path(__file__).with_name("units").joinpath(template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _command(program: str) -> str:
    return " ".join(_word(word) for word in shlex.split(program))


def _word(word: str) -> str:
    """A word, quoted for a unit file."""
    escaped = word.replace("%", "%%").replace("$", "$$")
    if word and not any(char in word for char in " \t\"'\\;"):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'
