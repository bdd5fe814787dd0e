"""`twist llamaswap`: the options, and the service made from them.

The only module beside `cli` that names the global reactor. What can be wrong with the options or the configuration
is said on stderr before anything listens or starts, with exit status 1.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from twisted.application.service import IService
from twisted.python.usage import Options as UsageOptions

from llamaswap import early_signals
from llamaswap.errors import ConfigError

if TYPE_CHECKING:
    from llamaswap.app.service import LlamaSwap

early_signals.catch()  # `twist` loads this module only for `twist llamaswap`

DEFAULT_CONFIG = "config.yaml"  # in the current folder, when nothing is said
PORT, TLS_PORT = ":8080", ":8443"


class Options(UsageOptions):
    """The command line of `twist llamaswap`."""

    synopsis = "[options]"
    longdesc = (
        "One endpoint in front of every local inference server. Without --config and --config-dir the file "
        "config.yaml of the current folder is used; where there is none, a built-in demo with two tiny models runs."
    )
    optParameters = [
        ["config", None, None, "One YAML configuration file."],
        ["config-dir", None, None, "A folder whose *.yml and *.yaml files are merged, in addition to --config."],
        [
            "listen",
            None,
            None,
            "host:port, :port or a Twisted endpoint string; default: systemd's socket, else :8080, with TLS :8443.",
        ],
        ["tls-cert-file", None, None, "TLS certificate (PEM), together with --tls-key-file."],
        ["tls-key-file", None, None, "TLS private key (PEM), together with --tls-cert-file."],
    ]
    optFlags = [
        ["watch-config", None, "Reload when a configuration source changes."],
        ["allow-config-edit", None, "Let the API and the web page change the --config file."],
        ["demo", None, "Run the built-in demo, whatever files there are."],
    ]

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        from llamaswap.version import describe

        sys.stdout.write(describe() + "\n")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """The last moment before `twist` imports the reactor."""
        if not self["tls-cert-file"] and "ssl:" not in (self["listen"] or ""):
            from llamaswap.proxy.fastpath.lazy_tls import import_reactor_without_tls

            import_reactor_without_tls()


def give_up(message: str) -> NoReturn:
    """Say what is wrong and exit with status 1."""
    sys.stderr.write(message.rstrip("\n") + "\n")
    raise SystemExit(1)


def chosen_sources(options: Options) -> tuple[str | None, str | None, bool]:
    """(config path, config folder, whether this is the demo) that the options mean."""
    config, folder = options["config"], options["config-dir"]
    if options["demo"]:
        return None, None, True
    if not config and not folder:
        if not Path(DEFAULT_CONFIG).exists():
            return None, None, True
        config = DEFAULT_CONFIG
    return config or None, folder or None, False


def makeService(options: Options) -> IService:
    """The whole service, its configuration loaded and checked."""
    if bool(options["tls-cert-file"]) != bool(options["tls-key-file"]):
        give_up("--tls-cert-file and --tls-key-file belong together: give both or neither")
    from twisted.internet import reactor

    from llamaswap.app.context import IServiceReactor
    from llamaswap.app.service import build
    from llamaswap.app.settings import ServiceSettings
    from llamaswap.app.systemd import given_socket
    from llamaswap.proxy.fastpath.epoll import use_plain_poll
    from llamaswap.proxy.listen import ListenAddress
    from llamaswap.upgrade.inherited import inherited
    from llamaswap.upgrade.program import announce_ready, being_checked

    checked, earlier = being_checked(os.environ), inherited(os.environ)
    # Timers must not jump with the wall clock (suspended hosts, time servers): Twisted's default is time.time.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    use_plain_poll(reactor)

    config, folder, demo = chosen_sources(options)
    listen = options["listen"] or (earlier.where if earlier is not None else given_socket())
    listen = listen or (TLS_PORT if options["tls-cert-file"] else PORT)
    if checked and listen.startswith("systemd:"):
        listen = PORT  # such a socket is only for the process it was given to, and nothing listens here
    settings = ServiceSettings(
        config=config,
        config_dir=folder,
        demo=demo,
        watch=bool(options["watch-config"]),
        allow_config_edit=bool(options["allow-config-edit"]),
        listen=ListenAddress(listen, options["tls-cert-file"], options["tls-key-file"]),
    )
    try:
        service = build(cast(IServiceReactor, reactor), settings, dict(os.environ), earlier)
    except ConfigError as error:
        where = " and ".join(str(place) for place in (config, folder) if place)
        give_up(f"configuration not usable ({where}):\n{error}")
    except (OSError, ValueError) as error:
        give_up(f"cannot start: {error}")
    if checked:
        announce_ready()
        raise SystemExit(0)
    observe(options, service)
    return service


def observe(options: Options, service: LlamaSwap) -> None:
    """Have `twist` pass its log to the service instead of writing it, unless --log-format or --log-file was given.

    `logToStdout` promises what standard output gets: the combined log and nothing else.
    """
    parent = getattr(options, "parent", None)
    if parent is None or any(word.startswith(("--log-format", "--log-file")) for word in sys.argv):
        return
    service.observed = True
    parent["fileLogObserverFactory"] = lambda _: service.observe
