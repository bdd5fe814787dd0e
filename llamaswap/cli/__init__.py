"""The subcommands of `llamaswap`: what an operator types beside the Go program's flags.

Each command talks to a running server over its HTTP API or reads files; none knows the service's insides. They run
in a process of their own, so they may block.
"""

from llamaswap.cli.flags import main

__all__ = ["main"]
