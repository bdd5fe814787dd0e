"""`twist llamaswap`: its options, and the service made from them.

Besides `cli` this is the only module that uses the global reactor. Errors in the options or the configuration are
written to stderr before anything listens or starts, with exit status 1.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from twisted.application.service import IService
from twisted.logger import LogLevel
from twisted.python.usage import Options as UsageOptions

from llamaswap import early_signals
from llamaswap.errors import ConfigError

if TYPE_CHECKING:
    from llamaswap.app.service import LlamaSwap

early_signals.catch()  # `twist` loads this module only for `twist llamaswap`
# What is made until the service runs stays: looking through it again and again is a twentieth of the start. Only young
# objects are collected until then (see app/service.py), among them the classes that attrs replaces.
gc.set_threshold(10_000, 1000, 10)

DEFAULT_CONFIG = "config.yaml"  # in the current folder, if no configuration is named
DEFAULT_LISTEN, DEFAULT_TLS_LISTEN = ":8080", ":8443"


class Options(UsageOptions):
    """The command line of `twist llamaswap`."""

    synopsis = "[options]"
    longdesc = (
        "One endpoint in front of every local inference server. Without --config and --config-dir it reads config.yaml "
        "in the current folder; if that file does not exist, a built-in demo with two tiny models runs, whose "
        "configuration --allow-config-edit writes to that file first."
    )
    optParameters = [
        ["config", None, None, "One YAML configuration file."],
        ["config-dir", None, None, "A folder whose *.yml and *.yaml files are merged; may be combined with --config."],
        [
            "listen",
            None,
            None,
            "host:port, :port or a Twisted endpoint string; default: systemd's socket, else :8080, or :8443 with TLS.",
        ],
        ["agent", None, None, "Run the models that another llamaswap wants on this host, which has this name."],
        ["tls-cert-file", None, None, "TLS certificate (PEM), together with --tls-key-file."],
        ["tls-key-file", None, None, "TLS private key (PEM), together with --tls-cert-file."],
    ]
    optFlags = [
        ["watch-config", None, "Reload when a configuration source changes."],
        ["allow-config-edit", None, "Let the API and the web page change the --config file."],
        ["demo", None, "Run the built-in demo and read no configuration file."],
    ]

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        from llamaswap.version import describe

        sys.stdout.write(describe() + "\n")
        raise SystemExit(0)

    def postOptions(self) -> None:
        """Called before `twist` imports the reactor, unless --reactor names one: install ours, and load OpenSSL, which
        comes with the reactor, only where it is needed. The service's modules are not imported yet either."""
        from llamaswap.proxy.fastpath.shared_repr import share_repr

        share_repr()
        if not self["tls-cert-file"] and "ssl:" not in (self["listen"] or ""):
            from llamaswap.proxy.fastpath.lazy_tls import import_reactor_without_tls

            import_reactor_without_tls()
        from llamaswap.proxy.fastpath.epoll import install

        install()


def chosen_sources(options: Options) -> tuple[str | None, str | None, bool]:
    """(config path, config folder, whether this is the demo) for the options."""
    config, folder = options["config"], options["config-dir"]
    if options["demo"]:
        return None, None, True
    if not config and not folder:
        if not Path(DEFAULT_CONFIG).exists():
            if not options["allow-config-edit"]:
                return None, None, True
            _begin_with_the_demo(Path(DEFAULT_CONFIG))
        config = DEFAULT_CONFIG
    return config or None, folder or None, False


def _begin_with_the_demo(config: Path) -> None:
    """Write the demo's configuration to a new file, so that there is one to be edited."""
    from llamaswap.app.startup_log import give_up
    from llamaswap.demo import demo_config

    try:
        with config.open("x", encoding="utf-8") as file:
            file.write(demo_config())
    except OSError as error:
        give_up(f"cannot write {config} to be edited: {error}")


def makeService(options: Options) -> IService:
    """The service, with its configuration loaded and checked."""
    from twisted.internet import reactor

    from llamaswap.app.service import build
    from llamaswap.app.settings import IServiceReactor, ServiceSettings
    from llamaswap.app.startup_log import give_up
    from llamaswap.app.systemd import inherited_endpoint
    from llamaswap.proxy.listen import ListenAddress
    from llamaswap.upgrade.program import announce_ready, being_checked, inherited

    if bool(options["tls-cert-file"]) != bool(options["tls-key-file"]):
        give_up("--tls-cert-file and --tls-key-file must be given together")
    checked, earlier = being_checked(os.environ), inherited(os.environ)
    # Timers must not follow changes of the wall clock (suspended hosts, time servers), as Twisted's default does.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]

    agent = options["agent"] or ""
    config, folder, demo = (None, None, False) if agent else chosen_sources(options)
    listen = options["listen"] or (earlier.where if earlier is not None else inherited_endpoint())
    listen = listen or (DEFAULT_TLS_LISTEN if options["tls-cert-file"] else DEFAULT_LISTEN)
    if checked and listen.startswith("systemd:"):
        listen = DEFAULT_LISTEN  # such a socket is only for the process that got it, and nothing listens here
    settings = ServiceSettings(
        config=config,
        config_dir=folder,
        demo=demo,
        agent=agent,
        watch=bool(options["watch-config"]),
        allow_config_edit=bool(options["allow-config-edit"]),
        listen=ListenAddress(listen, options["tls-cert-file"], options["tls-key-file"]),
    )
    try:
        service = build(cast(IServiceReactor, reactor), settings, dict(os.environ), earlier)
    except ConfigError as error:
        where = " and ".join(str(place) for place in (config, folder) if place)
        give_up(f"the configuration cannot be used ({where}):\n{error}")
    except (OSError, ValueError) as error:
        give_up(f"cannot start: {error}")
    if checked:
        announce_ready()
        raise SystemExit(0)
    observe(options, service)
    return service


def observe(options: Options, service: LlamaSwap) -> None:
    """Have `twist` pass log events to the service instead of writing them, unless --log-format or --log-file was given:
    standard output is for the logs that `logToStdout` names.
    """
    parent = getattr(options, "parent", None)
    if parent is None or any(word.startswith(("--log-format", "--log-file")) for word in sys.argv):
        return
    service.observed = True
    parent["fileLogObserverFactory"] = lambda _: service.observe
    if not any(word.startswith("--log-level") for word in sys.argv):
        parent["logLevel"] = LogLevel.debug  # the service drops what is below the configuration's logLevel
